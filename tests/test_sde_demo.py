"""``python -m fokker demo sde``, made smaller: distances must fall with the calls, and the pictures show something."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pyplot = pytest.importorskip("matplotlib.pyplot")

import fokker.__main__  # noqa: E402
from fokker._cli import demo_sde  # noqa: E402


def check(results, calls, printed):
    for kind in ("exact", "network"):
        rows = results[kind]["rows"]
        assert set(rows) == set(demo_sde.SAMPLERS)
        for name, found in rows.items():
            assert [c for c, _ in found] == [min(c, n) for (c, _), n in zip(found, calls, strict=True)]  # no more calls
            assert kind == "network" or found[-1][1] < found[0][1], (name, found)
    exact = {name: found[-1][1] for name, found in results["exact"]["rows"].items()}
    for name in ("DPM-Solver++ 2M", "UniPC 3", "DPM-Solver++ 2M SDE"):
        assert exact[name] < 2 * results["exact"]["floor"], exact
    assert max(results["ks"].values()) < 2.6  # passed by 1.7e-4 of laws (64 pixels)
    assert np.mean(results["losses"][-10:]) < 0.9 * np.mean(results["losses"][:5])
    for name in demo_sde.SAMPLERS:
        assert printed.count(f"\n{name:22} ") == 2
    for path in results["pictures"]:
        image = pyplot.imread(path)[..., :3]
        assert image.shape[0] > 400 and image.shape[1] > 800
        assert 0.2 < (image.min(-1) > 0.99).mean() < 0.97
        assert len(np.unique((image * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 100


def test_smaller(tmp_path, capsys):
    calls = (5, 20)
    results = demo_sde.job(tmp_path, 0, steps=40, count=80, calls=calls)
    check(results, calls, capsys.readouterr().out)


@pytest.mark.slow
def test_whole_command(tmp_path, capsys):
    assert fokker.__main__.main(["demo", "sde", "--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"sde_samples.png", "sde_distances.png"}
    assert "Pictures" in capsys.readouterr().out


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_sde, "NEEDED", {"no_such_module": "some-package"})
    with pytest.raises(SystemExit, match=r"some-package.*pip install fokker\[demo\]"):
        fokker.__main__.main(["demo", "sde", "--out", str(tmp_path)])
