"""Isotropic mixtures with exact diffused scores, and statistics of weighted populations, for the tests of systems."""

import math

import torch

F64 = torch.float64


class Law:
    """sum_k w_k N(m_k, v_k I) in d dimensions, diffused by a process: model(x, t) and the log density at a time."""

    def __init__(self, process, means, variances, weights, prediction="score"):
        self.process, self.prediction = process, prediction
        self.m, self.v, self.w = (torch.tensor(a, dtype=F64) for a in (means, variances, weights))

    def parts(self, x, t):
        """Log weight times density of each component, alpha, sigma, variances; t a number or ``(B,)``."""
        if isinstance(t, torch.Tensor):
            t = float(t[0]) if bool((t == t[0]).all()) else t.double()[:, None]
        a, s = (torch.as_tensor(c, dtype=F64) for c in (self.process.alpha(t), self.process.sigma(t)))
        c = a * a * self.v + s * s
        squares = (x[:, None] - a[..., None] * self.m).square().sum(2)
        return self.w.log() - 0.5 * x.shape[1] * (2 * math.pi * c).log() - 0.5 * squares / c, a, s, c

    def log_prob(self, x, t):
        return self.parts(x, t)[0].logsumexp(1)

    def __call__(self, x, t):
        logs, a, s, c = self.parts(x.double(), t)
        r = torch.softmax(logs, 1)
        score = a * ((r / c) @ self.m) - (r / c).sum(1, keepdim=True) * x
        found = {"score": score, "epsilon": -s * score, "x0": (x + s * s * score) / a}[self.prediction]
        return found.to(x.dtype)


def cdf_of(log_density, grid):
    """The distribution function on a grid of an unnormalised log density."""
    p = (log_density - log_density.max()).exp()
    c = torch.cat([p.new_zeros(1), torch.cumulative_trapezoid(p, grid)])
    return c / c[-1]


def t_statistics(x, log_weights, populations, log_density, grid):
    """(largest |t| over the law's deciles, largest error) of the distribution function that populations estimate.

    Populations are independent, so the t of each decile has ``populations - 1`` degrees of freedom if the estimate is
    unbiased.
    """
    c = cdf_of(log_density, grid)
    at = torch.searchsorted(c, torch.arange(1, 10, dtype=F64) / 10)
    w = torch.softmax(log_weights.reshape(populations, 1, -1), 2)
    found = (w * (x.reshape(populations, 1, -1) <= grid[at][:, None])).sum(2)
    error, se = found.mean(0) - c[at], found.std(0) / math.sqrt(populations)
    return float((error / se).abs().max()), float(error.abs().max())
