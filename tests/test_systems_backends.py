"""The systems over the ops give the same on every backend that runs here, the reference's numbers to rounding."""

import pytest
import torch
from conftest import BACKENDS
from test_sde_methods import MASK, L, exact_logits

import fokker
from fokker import mixture, sde
from fokker.systems import absorbing, dmcmc, gbm_diffusion, interpolants, teleport, tweedie

F64 = torch.float64


def _runs():
    g = torch.Generator().manual_seed(1)
    data = torch.randn(30, 4, generator=g, dtype=F64)
    law = teleport.gaussian(data, 2)
    process = sde.EDM(0.1, 10.0)
    x = 10 * torch.randn(3, 4, generator=g, dtype=F64)
    yield teleport.sample(
        teleport.denoiser(law, process), process, sde.Heun(), (3, 4), 3, 0, law=law, time=2.0, start=x, dtype=F64
    )
    wide = mixture.Mixture(data[:3], torch.full((3,), 0.2, dtype=F64), None, "isotropic")
    sigmas = dmcmc.levels(0.1, 4.0, 8)

    def denoiser(x, s):
        return mixture.posterior_mean(x, wide, sigma=s.double())

    found, _ = dmcmc.sample(denoiser, dmcmc.exact_levels(wide, sigmas), sigmas, (3, 4), 2, 3, 1, skip=3, dtype=F64)
    yield found
    positive = torch.exp(data)
    gbm = sde.GeometricBrownian(t_min=0.1)
    for method in gbm_diffusion.METHODS:
        yield gbm_diffusion.sample(
            gbm_diffusion.empirical(positive, gbm), gbm, (3, 4), 4, 2, method=method, dtype=F64
        )  # fmt: skip
    yield tweedie.Gaussian(0.5).denoise(x, tweedie.kde_score(data, 0.5))
    law = interpolants.interpolant("linear", t_min=0.1, t_max=0.9)
    yield interpolants.sample(lambda x, t: (-x, 0.5 * x), law, x, 4, 3, epsilon=0.5)
    yield absorbing.sample(exact_logits, sde.Absorbing(MASK), (4, L), 5, seed=4).double()
    yield absorbing.lambda_dce(exact_logits, torch.zeros(4, L, dtype=torch.int64), MASK, seed=4)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_backends_agree(backend):
    with fokker.use_backend("reference"):
        wanted = list(_runs())
    with fokker.use_backend(backend):
        found = list(_runs())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
