"""The examples of ``python -m fokker systems NAME``, made smaller, and what they should show."""

import pytest

from fokker._cli.systems import example

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the weights degenerated")]


def run(name, folder, **sizes):
    found = example(name).example(folder, 0, **sizes)
    assert all(p.is_file() and p.stat().st_size > 5000 for p in found["pictures"])
    return found


def test_superdiff(tmp_path):
    table = run("superdiff", tmp_path, count=24, steps=100)["table"]
    assert table["and"][2] < 0.2 * table["mean"][2] < table["or"][2]


def test_feynman_kac(tmp_path):
    results = run("feynman_kac", tmp_path, count=384, steps=80)["results"]
    (exact, mean), (shares, value), (plain, low) = (results[n] for n in ("exact", "weighted", "unweighted"))
    assert abs(value - mean) < 0.3 * abs(low - mean)
    assert float((shares - exact).abs().sum()) < 0.7 * float((plain - exact).abs().sum())


def test_particle_posterior(tmp_path):
    errors = run("particle_posterior", tmp_path, digit_count=4, count=256, steps=80)["errors"]
    assert sum(errors["weighted"]) < 0.5 * sum(errors["unweighted"])


def test_score_sde(tmp_path):
    found = run("score_sde", tmp_path, steps=50, count=10, patches=500, measured=3)
    assert found["right"] >= 0.8 and 3 < found["bits"][1] < 5


def test_mixed_ode_sde(tmp_path):
    before, after = run("mixed_ode_sde", tmp_path, iterations=20, batch=64, steps=10)["values"][1:]
    assert after > before
