"""Gaussian mixtures with exact denoisers, shared by the tests of fokker.sde."""

import math

import torch

from fokker import mixture, sde

MEANS = [[1.0, -0.5], [-1.0, 0.7], [0.2, 1.2]]


def gaussians(variances=(0.3, 0.4, 0.5), dtype=torch.float64):
    return mixture.Mixture(torch.tensor(MEANS, dtype=dtype), torch.tensor(variances, dtype=dtype), None, "isotropic")


def denoiser(process, law=None, prediction="x0"):
    """E[x_0 | x_t] of a mixture (or what else of it), for states (B, d) and times (B,)."""
    law = gaussians() if law is None else law

    def model(x, t):
        if not isinstance(t, torch.Tensor):
            t = torch.tensor(t, dtype=torch.float64)
        t = t.double().expand(x.shape[0])
        a, s = process.alpha(t), process.sigma(t)
        d = mixture.posterior_mean(x, law, alpha=a, sigma=s)
        a, s = a[:, None].to(x), s[:, None].to(x)
        eps = (x - a * d) / s
        if prediction == "flow":
            da, ds = (c[:, None].to(x) for c in process.slopes(t))
            return da * d + ds * eps
        return {"x0": d, "epsilon": eps, "score": -eps / s, "v": a * eps - s * d}[prediction]

    return model


def normal_cdf(x, mean, std):
    return 0.5 * (1 + torch.erf((x - mean) / (std * math.sqrt(2))))


def ks(x, cdf):
    """sqrt(n) times the Kolmogorov-Smirnov distance of a sample (n,) from a law."""
    x = x.double().sort().values
    n = len(x)
    u = cdf(x)
    i = torch.arange(n, dtype=torch.float64)
    return math.sqrt(n) * float(torch.maximum(u - i / n, (i + 1) / n - u).max())


#: exceeded with probability 1e-4 by a sample of the law itself: 2 exp(-2 c^2) = 1e-4
KS_LIMIT = 2.225


def slope(errors):
    """The order that the last two of a series of errors at doubled steps show."""
    return math.log2(errors[-2] / errors[-1])


def differences(results):
    """The order that three results at doubled steps show, without knowing the truth."""
    return math.log2(float((results[0] - results[1]).abs().max()) / float((results[1] - results[2]).abs().max()))


# ---- runs ---------------------------------------------------------------------------------------------------------
B, D = 5, 2
VP = sde.VP(t_min=0.01)
NOISY = sde.EulerMaruyama()
KINDS = {
    "one step, noise": NOISY,
    "corrector": sde.PredictorCorrector(),
    "churn": sde.EDMHeun(churn=4.0),
    "multistep": sde.DPMSolver(3),
    "multistep, noise": sde.DPMSolver(2, eta=1.0),
    "UniPC": sde.UniPC(3),
    "singlestep": sde.DPMSolver(3, multistep=False),
    "LMS": sde.LMS(),
}


def run(sampler, process=VP, steps=7, seed=3, shape=(B, D), prediction="x0", law=None, **more):
    model = more.pop("model", None) or denoiser(process, law, prediction)
    more.setdefault("dtype", torch.float64)
    return sde.sample(model, process, sampler, shape, steps, seed, grid="log_snr", prediction=prediction, **more)


def first(process, batch=B, dtype=torch.float64):
    """A state to start from."""
    return process.prior_sample(batch, (D,), seed=9, dtype=dtype)
