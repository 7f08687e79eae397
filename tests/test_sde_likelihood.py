"""Likelihoods of fokker.sde against Gaussian mixtures, whose log density is known at every time."""

import math

import pytest
import torch
from sde_problems import denoiser, gaussians

from fokker import mixture, sde

PROCESSES = {
    "vp": sde.VP(t_min=0.01),
    "cosine": sde.VP("cosine", t_min=0.01),
    "subvp": sde.SubVP(t_min=0.03),
    "ve": sde.VE(0.1, 50.0),
    "edm": sde.EDM(0.1, 80.0),
    "flow": sde.RectifiedFlow(t_min=0.02),
}
LAW = gaussians()
# centred: a prior of mean zero then differs from the law at t_max to second order only
LAW = mixture.Mixture(LAW.means - LAW.means.mean(0), LAW.covariance, None, "isotropic")


def data(process, n=8, law=LAW):
    a, s = float(process.alpha(process.t_min)), float(process.sigma(process.t_min))
    x = mixture.sample(law, (n,), alpha=a, sigma=s, seed=1)
    return x, mixture.log_prob(x, law, alpha=a, sigma=s)


@pytest.mark.parametrize("name", PROCESSES)
def test_exact_divergence(name):
    """To 1e-3 nats a dimension with at most 150 calls; what is left is the prior's distance from the law at t_max."""
    p = PROCESSES[name]
    x, truth = data(p)
    prediction = "flow" if name == "flow" else "x0"
    found = sde.log_likelihood(denoiser(p, LAW, prediction), p, x, divergence="exact", prediction=prediction)
    assert found.log_prob.dtype == torch.float64 and found.latent.shape == x.shape
    assert float((found.log_prob - truth).abs().max()) / x.shape[1] < 1e-3
    assert int(found.evaluations.max()) <= 150


def test_without_the_prior_s_error():
    """With the density at the far end for the prior's, the error is that of the steps: the tolerance."""
    p = PROCESSES["vp"]
    x, truth = data(p)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = sde.log_likelihood(denoiser(p, LAW), p, x, divergence="exact", rtol=tolerance, atol=tolerance)
        end = mixture.log_prob(found.latent, LAW, alpha=float(p.alpha(1.0)), sigma=float(p.sigma(1.0)))
        log_prob = found.log_prob - p.prior_log_prob(found.latent) + end
        errors.append(float((log_prob - truth).abs().max()))
    assert errors[0] < 5e-3 and errors[1] < 5e-5 and errors[2] < 5e-7


@pytest.mark.parametrize("prediction", ["epsilon", "score", "v", "flow"])
def test_prediction_types(prediction):
    p = PROCESSES["vp"]
    x, _ = data(p, 4)
    want = sde.log_likelihood(denoiser(p, LAW), p, x, divergence="exact", rtol=1e-7, atol=1e-7)
    found = sde.log_likelihood(
        denoiser(p, LAW, prediction), p, x, divergence="exact", prediction=prediction, rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(found.log_prob, want.log_prob, rtol=1e-4, atol=1e-5)


def test_hutchinson_is_unbiased():
    """128 probes: their mean is within five standard errors of the truth (6e-7 false alarms a sample)."""
    p = PROCESSES["vp"]
    x, truth = data(p, 3)
    many = x.repeat_interleave(128, 0)
    found = sde.log_likelihood(denoiser(p, LAW), p, many, seed=5, rtol=1e-4, atol=1e-4).log_prob.reshape(3, 128)
    error = found.std(1) / math.sqrt(128)
    assert bool((error > 0).all()) and bool(((found.mean(1) - truth).abs() < 5 * error + 2e-3).all())
    # several probes at once are the mean of as many paths of one: the same noise at a lower variance
    more = sde.log_likelihood(denoiser(p, LAW), p, many[:256], seed=5, probes=8, rtol=1e-4, atol=1e-4).log_prob.reshape(
        2, 128
    )
    assert bool((more.std(1) < 0.5 * found[:2].std(1)).all())


def test_hutchinson_is_exact_in_one_dimension():
    """Signs square to one."""
    law = mixture.Mixture(
        torch.tensor([[-0.8], [0.8]], dtype=torch.float64), torch.tensor([0.2, 0.12], dtype=torch.float64), None,
        "isotropic",
    )  # fmt: skip
    p = PROCESSES["edm"]
    x, truth = data(p, 16, law)
    found = sde.log_likelihood(denoiser(p, law), p, x, seed=1)
    assert float((found.log_prob - truth).abs().max()) < 1e-3


def test_whatever_the_batch_split_and_float32():
    p = PROCESSES["edm"]
    x, truth = data(p, 6)
    whole = sde.log_likelihood(denoiser(p, LAW), p, x, seed=3)
    part = sde.log_likelihood(denoiser(p, LAW), p, x[2:5], seed=3, sample_ids=range(2, 5))
    torch.testing.assert_close(part.log_prob, whole.log_prob[2:5], rtol=1e-10, atol=1e-10)
    assert bool((part.evaluations == whole.evaluations[2:5]).all())
    model = denoiser(p, LAW)
    narrow = sde.log_likelihood(
        lambda x, t: model(x.double(), t).float(), p, x.float(), divergence="exact", rtol=1e-4, atol=1e-4
    )
    assert narrow.latent.dtype == torch.float32
    assert float((narrow.log_prob - truth).abs().max()) / 2 < 2e-3


def test_preconditioned_network():
    p = sde.EDM(0.1, 20.0)
    exact = denoiser(p, LAW)

    def network(u, c):
        sigma = torch.exp(4 * c)[:, None]
        scale = torch.sqrt(sigma**2 + 0.25)
        x = u * scale
        return (exact(x, sigma[:, 0]) - 0.25 / scale**2 * x) / (0.5 * sigma / scale)

    x, _ = data(p, 4)
    a = sde.log_likelihood(network, p, x, prediction="edm", divergence="exact")
    b = sde.log_likelihood(exact, p, x, divergence="exact")
    torch.testing.assert_close(a.log_prob, b.log_prob, rtol=1e-6, atol=1e-6)


def test_images_and_conditions():
    """N(0, 0.3 I) on 2 x 2 x 2 images by a network with a keyword: the density of eight independent numbers."""
    p = sde.EDM(0.1, 80.0)

    def model(x, t, scale):
        shape = (-1, 1, 1, 1)
        return scale * 0.3 / (0.3 + t.square().reshape(shape)) * x

    x = 0.5 * torch.randn(3, 2, 2, 2, dtype=torch.float64)
    found = sde.log_likelihood(model, p, x, condition={"scale": 1.0}, divergence="exact")
    truth = torch.distributions.Normal(0.0, math.sqrt(0.31)).log_prob(x).sum((1, 2, 3))
    assert float((found.log_prob - truth).abs().max()) / 8 < 1e-3


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_ito_estimator_converges(name):
    """log q along the reverse SDE: root mean square errors fall as steps^{-1/2}, and the mean error is small."""
    p = {"vp": sde.VP(t_min=0.05, t_max=0.7), "edm": sde.EDM(0.2, 4.0)}[name]
    ends = [(float(p.alpha(t)), float(p.sigma(t))) for t in (p.t_max, p.t_min)]
    start = mixture.sample(LAW, (400,), alpha=ends[0][0], sigma=ends[0][1], seed=2)
    log_start = mixture.log_prob(start, LAW, alpha=ends[0][0], sigma=ends[0][1])
    errors = []
    for steps in (50, 200, 800):
        x, log_q = sde.sample_with_log_density(
            denoiser(p, LAW), p, (400, 2), times=sde.log_snr(p, steps, to_zero=False), seed=7, start=start,
            start_log_prob=log_start, dtype=torch.float64,
        )  # fmt: skip
        errors.append(log_q - mixture.log_prob(x, LAW, alpha=ends[1][0], sigma=ends[1][1]))
    rms = [float(e.square().mean().sqrt()) for e in errors]
    assert 0.35 < math.log(rms[0] / rms[2]) / math.log(16) < 0.75, rms
    assert abs(float(errors[2].mean())) < 0.05 and rms[2] < 0.25


def test_ito_samples_are_those_of_euler_maruyama():
    p = PROCESSES["vp"]
    x, log_q = sde.sample_with_log_density(denoiser(p, LAW), p, (4, 2), 20, 3, dtype=torch.float64)
    y = sde.sample(denoiser(p, LAW), p, sde.EulerMaruyama(last_mean=False), (4, 2), 20, 3, dtype=torch.float64)
    torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    assert log_q.shape == (4,) and log_q.dtype == torch.float64


def test_errors_are_named():
    p = PROCESSES["vp"]
    x, _ = data(p, 2)
    for more, text in (
        ({"divergence": "none"}, "divergence must be 'exact' or 'hutchinson'"),
        ({"probes": 0}, "probes must be >= 1"),
        ({"times": (0.5, 0.2)}, "times must be in order"),
        ({"rtol": 0.0}, "rtol and atol must be > 0"),
        ({"max_steps": 2}, "not there after max_steps=2"),
        ({"seed": -1}, "seed must be in"),
    ):
        with pytest.raises(ValueError, match=text):
            sde.log_likelihood(denoiser(p, LAW), p, x, **more)
    with pytest.raises(TypeError, match="float32 or float64"):
        sde.log_likelihood(denoiser(p, LAW), p, x.half())
    nothing = sde.log_likelihood(denoiser(p, LAW), p, x[:0])
    assert nothing.log_prob.shape == (0,)
