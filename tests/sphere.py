"""Shared by the tests of the von Mises-Fisher family: points on the sphere, laws of a cosine, what chance allows.

Seeds are fixed, so each statistical test passes or fails for good. LEVEL is the chance that a right sampler would have
failed one p-value at its seed, SIGMAS = 5 (two-sided 5.7e-7) that of one comparison of a mean.
"""

import math

import numpy as np
import scipy.stats
import torch
from conftest import BACKENDS

from fokker._cli.check import _device
from fokker.cases import CASES

F64 = torch.float64
LEVEL, SIGMAS = 1e-6, 5.0
NATIVE = [b for b in BACKENDS if b in CASES["vmf_sample"].backends and b != "reference"]


def unit(*shape, dtype=F64):
    x = torch.randn(*shape, dtype=F64)
    return (x / x.norm(dim=-1, keepdim=True)).to(dtype)


def doubles(*values):
    return torch.tensor(values, dtype=F64)


def on(backend, *values, dtype=F64):
    return torch.tensor(values, dtype=dtype, device=_device(backend))


def many(backend, n=20_000):
    """How many samples: the emulator is slow, and draws the same ones."""
    return max(n // 40, 100) if backend == "emu" else n


def log_area(d):
    """log of the surface of the unit sphere of R^d."""
    return math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)


def close(got, want, rtol=1e-13, atol=0.0):
    want = torch.as_tensor(want, dtype=F64)
    torch.testing.assert_close(got.detach().cpu().double(), want.detach().cpu(), rtol=rtol, atol=atol)


def within(samples, truth, label=""):
    """The mean over the first dimension is the truth, to SIGMAS standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert bool(((samples.mean(0) - truth).abs() <= SIGMAS * error + 1e-14 * (1 + truth.abs())).all()), label


def directions(d):
    """Means where a reflection could go wrong: +-e1 and next to them, a first coordinate of +-0, and any."""
    first = torch.eye(d, dtype=F64)[0]
    zero = unit(d - 1)
    flat = [torch.cat([torch.tensor([z], dtype=F64), zero]) for z in (0.0, -0.0, -1e-300)]
    near = first + 1e-9 * unit(d)
    return torch.stack([unit(d), first, -first, near / near.norm(), -near / near.norm(), *flat])


def probability(d, k, one_minus_w):
    """P(angle to the mean <= arccos w), from the density sin^(d-2)(phi) exp(k cos phi) by the trapezoidal rule."""
    n = d - 2
    root = math.hypot(n, 2 * k)
    mode = 2 * math.asin(math.sqrt((n + n * n / (root + 2 * k)) / (n + root) / 2)) if n else 0.0
    reach = 14 / math.sqrt(n + k + 0.01)
    phi = np.linspace(max(mode - reach, 0.0), min(mode + reach, math.pi), 40001)
    log_density = -2 * k * (np.sin(phi / 2) ** 2 - math.sin(mode / 2) ** 2)
    if n:
        with np.errstate(divide="ignore"):
            log_density += n * np.log(np.abs(np.sin(phi)) / math.sin(mode))
    density = np.exp(log_density)
    total = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return np.interp(2 * np.arcsin(np.sqrt(one_minus_w / 2)), phi, total / total[-1])


def check_tangent(xi, w, mean, v):
    """Unit rows xi orthogonal to the mean are uniform and unrelated to the cosines w: their projections on v are."""
    n, d = xi.shape
    v = v - (v @ mean) * mean
    projection = xi @ (v / v.norm())
    if d == 2:
        assert abs(float((projection > 0).double().mean()) - 0.5) <= SIGMAS * 0.5 / math.sqrt(n)
    else:
        half = (d - 2) / 2
        p = scipy.stats.beta(half, half).cdf(((1 + projection.clamp(-1, 1)) / 2).numpy())
        assert scipy.stats.kstest(p, "uniform").pvalue > LEVEL
    relation = float((projection * (w - w.mean())).mean())
    assert abs(relation) <= SIGMAS * float(projection.std() * w.std()) / math.sqrt(n)
