"""``python -m fokker demo denoiser``, made smaller: the same losses, times and parts of both, and a picture of them."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pyplot = pytest.importorskip("matplotlib.pyplot")

import fokker.__main__  # noqa: E402
from fokker._cli import demo_denoiser  # noqa: E402


def check(results, steps, printed):
    assert len(results["float32"]["gap"]) == steps
    assert max(results["float32"]["gap"][:10]) < 1e-6 and max(results["float32"]["gap"]) < 1e-3
    assert max(results["float64"]["gap"]) < 1e-13 and 0 < results["float64"]["weights"] < 1e-11
    losses = results["float32"]["losses"]
    assert np.mean(losses["fokker"][-3:]) < 0.95 * losses["fokker"][0]
    for name in ("plain", "fokker"):
        assert len(results["seconds"][name]) == steps
        parts = results["parts"][name]
        assert list(parts) == list(demo_denoiser.PARTS) and min(parts.values()) > 0
    assert "fokker" in printed and "ms without fokker" in printed and "matrix products" in printed
    image = pyplot.imread(results["pictures"][0])[..., :3]
    assert image.shape[0] > 600 and image.shape[1] > 1000
    assert 0.3 < (image.min(-1) > 0.99).mean() < 0.98
    assert len(np.unique((image * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 50


def test_smaller(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = demo_denoiser.job(tmp_path, 0, steps=12, batch=16, width=32, depth=1, exact=6)
    finally:
        torch.set_num_threads(threads)
    check(results, 12, capsys.readouterr().out)


@pytest.mark.slow
def test_whole_command(tmp_path, capsys):
    assert fokker.__main__.main(["demo", "denoiser", "--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"denoiser.png"}
    assert "Picture" in capsys.readouterr().out


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_denoiser, "NEEDED", {"no_such_module": "some-package"})
    with pytest.raises(SystemExit, match=r"some-package.*pip install fokker\[demo\]"):
        fokker.__main__.main(["demo", "denoiser", "--out", str(tmp_path)])
