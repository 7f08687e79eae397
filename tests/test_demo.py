"""``python -m fokker demo``, made smaller: what it prints and draws must say what it found."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("PIL")
pyplot = pytest.importorskip("matplotlib.pyplot")

import fokker.__main__  # noqa: E402
from fokker._cli import demo_data, demo_vmf  # noqa: E402


def pictures_say_something(paths):
    for path in paths:
        image = pyplot.imread(path)[..., :3]
        assert image.shape[0] > 400 and image.shape[1] > 800
        assert len(np.unique((image * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 500  # colours
        assert 0.2 < (image.min(-1) > 0.99).mean() < 0.95  # white ground, and things on it


def numbers_hold(results, dims):
    assert [row["dim"] for row in results["fits"]] == dims
    for row in results["fits"]:
        if row["dim"] < 80:  # where SciPy works, the two agree
            assert row["kappa"] == pytest.approx(row["scipy"]["kappa"], rel=1e-5)
            assert row["level"] == pytest.approx(row["scipy"]["level"], rel=1e-6)
        else:  # maximum likelihood: SciPy's answer is no better, and 1e-8 (as of 1.17) far worse
            assert row["kappa"] > 50
            assert row["level"] > row["ours_at_scipy"] + (10 if row["scipy"]["kappa"] < 1 else -1e-4 * row["level"])
    flower = {dim: row["flower"] for dim, row in results["scores"].items()}
    for dim in dims[1:3]:
        # Measured with seed 0, full size: 0.975 and 0.958 (other photograph), 0.982 and 0.977 (digits).
        assert flower[dim]["auroc"]["other"] > 0.9 and flower[dim]["auroc"]["digits"] > 0.92
        assert flower[dim]["auroc_ratio"] > 0.9
        assert flower[dim]["auroc"]["other"] > flower[dim]["auroc_single"]["other"] + 0.1  # what a mixture is for
    assert (np.diff(results["curve"]) > -1e-3).all() and results["curve"][-1] > results["curve"][0] + 20
    errors = results["errors"]
    assert errors["fokker"].max() <= 4e-15 and np.isnan(errors["fokker"]).sum() == 0
    assert (~np.isfinite(errors["scipy"])).mean() > 0.2
    maps = results["maps"]
    assert np.nanmean(maps["flower"]) > np.nanmean(maps["china"]) + 50


def test_smaller(tmp_path, capsys):
    results = demo_vmf.job(tmp_path, 0, largest=768, fraction=0.3, stride=8)
    numbers_hold(results, [48, 192, 768])
    pictures_say_something(results["pictures"])
    printed = capsys.readouterr().out
    assert "scipy.stats.vonmises_fisher.fit" in printed and "against ball arithmetic" in printed
    for dim in (48, 192, 768):
        assert sum(line.lstrip().startswith(f"{dim} ") for line in printed.splitlines()) == 3  # one fit, two mixtures


@pytest.mark.slow
def test_whole_command(tmp_path, capsys):
    assert fokker.__main__.main(["demo", "--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"densities.png", "log_iv_errors.png"}
    pictures_say_something(sorted(tmp_path.iterdir()))
    printed = capsys.readouterr().out
    assert "32760" in printed and str(tmp_path) in printed


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_vmf, "NEEDED", {"no_such_module": "some-package"})
    with pytest.raises(SystemExit, match=r"some-package.*pip install fokker\[demo\]"):
        fokker.__main__.main(["demo", "--out", str(tmp_path)])


def test_slow_opponent_is_left(monkeypatch):
    import threading

    held = threading.Event()
    assert demo_vmf._bounded(held.wait, 0.05) is None
    held.set()
    assert demo_vmf._bounded(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError):
        demo_vmf._bounded(lambda: 1 / 0, 5.0)


def test_patches_are_directions():
    random = np.random.default_rng(0)
    size = demo_data.Size(8, 8, 50, 2)
    photo = np.arange(20 * 30 * 3, dtype=np.float32).reshape(20, 30, 3) / 1800
    drawn = demo_data.patches(photo, size, 50, random)
    rows = demo_data.directions(drawn)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(rows.mean(1), 0, atol=1e-7)
    # each patch is a piece of the photograph: along its rows the ramp grows by 3 pixels' worth
    np.testing.assert_allclose(np.diff(drawn, axis=2), 3 / 1800, rtol=1e-3)
    assert len(demo_data.directions(np.ones((4, 8, 8, 3), np.float32))) == 0  # flat: no direction
    grid, shape = demo_data.every_patch(photo, size, 4)
    assert shape == (4, 6) and len(grid) == 24
    np.testing.assert_allclose(grid[7], demo_data.directions(photo[None, 4:12, 4:12])[0], atol=1e-6)
    left, right = demo_data.halves(photo)
    assert left.shape == right.shape == (20, 15, 3) and not np.shares_memory(left[:, -1:], right)
    tall = demo_data.digits(demo_data.Size(16, 24, 10, 2), 10, random)
    assert tall.shape == (10, 16, 24, 3) and (tall[:, 0] == tall[:, 1]).all() and (tall[:, :, 3] == tall[:, :, 5]).all()
