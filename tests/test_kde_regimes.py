"""The regimes of Biroli and Mezard, against their equations and against simulated data; and the demo made smaller."""

import math

import pytest
import torch

from fokker.systems import kde_regimes as regimes


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0, 4.0])
def test_boundaries_solve_their_equations(alpha):
    low, high = regimes.condensation_bandwidth(alpha), regimes.clt_bandwidth(alpha)
    assert 0 < low < high
    u, step = low**-2, 1e-6 * low**-2
    slope = (regimes.free_energy(u + step) - regimes.free_energy(u - step)) / (2 * step)
    assert alpha + regimes.free_energy(u) - u * slope == pytest.approx(0, abs=1e-7)
    u = high**-2
    assert regimes.free_energy(2 * u) - 2 * regimes.free_energy(u) == pytest.approx(alpha, rel=1e-10)


def test_free_energy_is_the_annealed_average():
    """(1/d) log E exp(-|x - y|^2 u / 2) for |x|^2 = d, a gaussian integral: exact at every d."""
    d, u = 7, 0.9
    # E over y ~ N(0, I): (1 + u)^(-d/2) exp(-u |x|^2 / (2 (1 + u)))
    assert d * regimes.free_energy(u) == pytest.approx(-0.5 * d * math.log1p(u) - 0.5 * u * d / (1 + u))


def test_a_few_data_carry_the_sum_at_the_condensation():
    """Simulated with d = 20, N = 20,000: about 6 data share at h_G and 14 at h_CLT, and 1 far below."""
    g = torch.Generator().manual_seed(0)
    y, x = torch.randn(20_000, 20, generator=g), torch.randn(60, 20, generator=g)
    alpha = math.log(20_000) / 20
    low, high = regimes.condensation_bandwidth(alpha), regimes.clt_bandwidth(alpha)
    sizes = regimes.effective_sizes(x, y, torch.tensor([0.3 * low, low, high, 3 * high]))
    assert sizes[0] < 1.5 and 3 < sizes[1] < 10 and 9 < sizes[2] < 25 and sizes[3] > 2000


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_alpha_is_checked(alpha):
    with pytest.raises(ValueError, match="alpha"):
        regimes.clt_bandwidth(alpha)


def test_demo_made_smaller(tmp_path, capsys):
    for module in ("sklearn", "skimage", "matplotlib", "PIL"):
        pytest.importorskip(module)
    from fokker._cli import demo_kde

    results = demo_kde.job(tmp_path, 0, count=1500, height=40, images=16)
    assert {p.name for p in tmp_path.iterdir()} == {"denoised.png", "digits.png", "regimes.png"}
    noisiest = results["photographs"]["rows"][-1]["psnr"]
    assert noisiest["its own other patches"] > noisiest["noisy"] + 3
    digits = results["digits"]
    assert digits["distance"].median() < 0.01 * digits["spacing"].median()  # all of it is memory
    assert digits["sizes"][0].mean() > 500 and digits["sizes"][-1].max() < 1.01
    assert "memorised" in capsys.readouterr().out
