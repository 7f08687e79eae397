"""The law of the counter-based random numbers and of the Brownian paths made of them.

Each limit says how often a perfect generator would miss it, over all seeds; the seeds here are fixed.
"""

import itertools
import math

import pytest
import torch

from fokker import random
from fokker.random import Stream


def uniforms(kind, x):
    """The distribution function of each kind at x."""
    x = x.double()
    if kind == "uniform":
        return x
    if kind == "normal":
        return torch.special.ndtr(x)
    if kind == "exponential":
        return -torch.expm1(-x)
    return torch.exp(-torch.exp(-x))


EULER = 0.5772156649015329
ZETA3 = 1.2020569031595942
#: mean, variance, and the fourth central moment
MOMENTS = {
    "uniform": (0.5, 1 / 12, 1 / 80),
    "normal": (0.0, 1.0, 3.0),
    "exponential": (1.0, 1.0, 9.0),
    "gumbel": (EULER, math.pi**2 / 6, 5.4 * (math.pi**2 / 6) ** 2),
    "rademacher": (0.0, 1.0, 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["uniform", "normal", "exponential", "gumbel"])
def test_distribution(kind, dtype):
    """Kolmogorov-Smirnov and two moments over 2^20 numbers of 64 samples: false alarms 1e-6 each."""
    n, limit = 2**20, 4.9
    x = getattr(random, kind)(64, n // 64, seed=42, step=3, stream=9, dtype=dtype).double().flatten()
    mean, variance, fourth = MOMENTS[kind]
    assert abs(x.mean().item() - mean) <= limit * math.sqrt(variance / n)
    square = (x - mean).square()
    assert abs(square.mean().item() - variance) <= limit * math.sqrt((fourth - variance**2) / n)
    u = uniforms(kind, x).sort().values
    grid = torch.arange(n, dtype=torch.float64) / n
    distance = max((u - grid).max().item(), (grid + 1 / n - u).max().item())
    assert distance * math.sqrt(n) <= 2.7  # 2 exp(-2 * 2.7^2) = 9e-7


def test_signs_and_bits_are_even():
    """Signs, and each of the 32 bits, over 2^20 words: false alarms 1e-6 for all 33 (each 3e-8: 5.55 sigma)."""
    n = 2**20
    words = random.bits(16, n // 16, seed=7, stream=3).flatten()
    for bit in range(32):
        ones = (words >> bit & 1).sum().item()
        assert abs(2 * ones - n) <= 5.55 * math.sqrt(n), bit
    assert abs(random.rademacher(16, n // 16, seed=8).sum().item()) <= 5.55 * math.sqrt(n)


FIELDS = {
    "seed, low word": {"seed": 12346},
    "seed, high word": {"seed": 12345 + 2**32},
    "step": {"step": 4},
    "step, one high bit": {"step": 3 + 2**23},
    "stream": {"stream": 10},
    "stream, one high bit": {"stream": 9 + 128},
    "sample": {"sample_ids": 1},
    "sample, high word": {"sample_ids": 2**32},
    "element, next lane": {"element_offset": 1},
    "element, next pair": {"element_offset": 2},
    "element, next block": {"element_offset": 4},
    "element, one high bit": {"element_offset": 2**32},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("field", FIELDS)
def test_neighbours_in_every_counter_field_are_uncorrelated(field, dtype):
    """Numbers and their squares, 2^17 pairs that differ in one field: false alarms 1e-6 each (4.9 sigma)."""
    n = 2**17
    base = {"seed": 12345, "step": 3, "stream": 9, "sample_ids": 0, "dtype": dtype}
    for kind in ("normal", "uniform"):
        mean, variance, fourth = MOMENTS[kind]
        x, y = (
            getattr(random, kind)(1, n, **place).double().flatten() - mean
            for place in (base, {**base, **FIELDS[field]})
        )
        assert not torch.equal(x, y)
        assert abs((x * y).mean().item()) <= 4.9 * variance / math.sqrt(n)
        spread = (fourth - variance**2) / math.sqrt(n)
        assert abs(((x.square() - variance) * (y.square() - variance)).mean().item()) <= 4.9 * spread


def test_words_of_neighbouring_counters_differ_in_half_their_bits():
    """Bits that differ between 2^15 pairs of words, for each field: false alarms 1e-6 (4.9 sigma)."""
    n = 2**15
    base = {"seed": 12345, "step": 3, "stream": 9, "sample_ids": 0}
    for name, change in FIELDS.items():
        x, y = (random.bits(1, n, **place).flatten() for place in (base, {**base, **change}))
        differing = sum((x ^ y).bitwise_right_shift(b).bitwise_and(1).sum().item() for b in range(32))
        assert abs(differing - 16 * n) <= 4.9 * math.sqrt(8 * n), name


def test_gumbel_draws_categories_by_their_probability():
    """Counts of argmax(logits + gumbel) against softmax, chi-square with 7 degrees of freedom: false alarms 1e-6."""
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.009, 0.0009, 0.0001], dtype=torch.float64)
    n = 400_000
    index = (p.log().float() + random.gumbel(n, 8, seed=5, stream=Stream.TOKEN_RACE)).argmax(1)
    counts = torch.bincount(index, minlength=8).double()
    assert ((counts - n * p).square() / (n * p)).sum() <= 40.5


# ---- Brownian paths ------------------------------------------------------------------------------------------------
def test_brownian_adds_up_whatever_the_number_of_steps():
    whole = random.brownian(50, 8, 0.0, 1.0, seed=5, dtype=torch.float64)
    for steps in (1, 7, 50, 200):
        grid = [i / steps for i in range(steps + 1)]
        parts = [random.brownian(50, 8, a, b, seed=5, dtype=torch.float64) for a, b in itertools.pairwise(grid)]
        torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-13)
    for a, b, c in ((0.1, 0.37, 0.9), (0.5, 0.5001, 0.75)):
        ab, bc, ac = (random.brownian(50, 8, *t, seed=5) for t in ((a, b), (b, c), (a, c)))
        torch.testing.assert_close(ab + bc, ac, rtol=0, atol=2e-6)
        torch.testing.assert_close(-ab, random.brownian(50, 8, b, a, seed=5), rtol=0, atol=0)


def test_brownian_has_the_law_of_brownian_motion():
    """Covariances of increments (variance the length, 0 between disjoint ones): false alarms 1e-6 each (4.9 sigma)."""
    n = 100_000
    grid = [0.0, 1e-4, 0.1, 0.2500001, 0.5, 0.5 + 1e-5, 0.77, 1.0]
    x = torch.stack(
        [random.brownian(n // 4, 4, a, b, seed=11).flatten().double() / math.sqrt(b - a)
         for a, b in itertools.pairwise(grid)]
    )  # fmt: skip
    covariance = x @ x.t() / n
    sigma = torch.full_like(covariance, 1 / math.sqrt(n)).fill_diagonal_(math.sqrt(2 / n))
    assert ((covariance - torch.eye(len(x), dtype=x.dtype)).abs() <= 4.9 * sigma).all()
    assert (x.mean(1).abs() <= 4.9 / math.sqrt(n)).all()
    for row in x:
        u = torch.special.ndtr(row.sort().values)
        at = torch.arange(n, dtype=torch.float64) / n
        assert max((u - at).max().item(), (at + 1 / n - u).max().item()) * math.sqrt(n) <= 2.7
    for other in ({"stream": 1}, {"seed": 12}, {"sample_ids": n}):
        y = random.brownian(n // 4, 4, 0.1, 0.2500001, **{"seed": 11, **other}).flatten().double()
        assert abs((x[2] * y).mean().item()) <= 4.9 * math.sqrt(0.1500001 / n)


def test_brownian_times_outside_the_interval_give_nan():
    t = torch.tensor([-0.1, 0.5, 1.5, math.nan])
    x = random.brownian(4, 3, t, 1.0, seed=1)
    assert x[1].isfinite().all() and x[[0, 2, 3]].isnan().all()
