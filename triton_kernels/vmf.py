"""The von Mises-Fisher functions of a dimension and a concentration k >= 0 in Triton.

    C_d(k) = k^v / ((2 pi)^(v+1) I_v(k)), v = d/2 - 1,   A = I_{v+1}/I_v = E[mu.x],   entropy = -(log C + k A)

k = 0 is the uniform distribution, k = inf a point mass; k < 0 and nan give nan. One pass: reads k once, writes one
result. Below hypot(v, k) = 32 (float32: 16) power series whose coefficients depend on the dimension (vmf_constants.py),
above it Debye's expansion, in which v log k has cancelled; a block evaluates what its elements want.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import MAX_32, MAX_64, const, divide, mad, pick
from .strided import launching, load, offset, store, walk
from .vmf_constants import LENGTHS_32, LENGTHS_64, SCALARS, vmf_constants
from .vmf_formulas import FROM_RESULTANT, KL_UNIFORM, power_series, vmf_regimes

# The order of math::VmfFn in csrc/math/vmf.h.
FUNCTIONS = (
    "log_normalizer",
    "mean_resultant",
    "complement",
    "resultant_derivative",
    "resultant_second",
    "entropy",
    "kl_uniform",
    "concentration_from_resultant",
    "concentration_from_complement",
)


@triton.jit
def vmf_value(k, c, F: tl.constexpr):
    """F in LOG_NORMALIZER .. KL_UNIFORM of any k."""
    double: tl.constexpr = k.dtype == tl.float64
    inside = (k >= 0.0) & (k < float("inf"))
    safe = tl.where(inside, k, 100.0)
    value, _, _, _ = vmf_regimes(safe, c, F)
    if F == KL_UNIFORM:  # near 0 the terms cancel
        scaled = k * tl.load(c + 11)
        q = scaled * scaled
        taylor = q * power_series(q, c + SCALARS, pick(double, LENGTHS_64[0], LENGTHS_32[0]))
        value = tl.where(k < tl.load(c + 12), taylor, value)
    limit: tl.constexpr = limit_at_infinity(F)
    return tl.where(inside, value, tl.where(k >= 0.0, const(k, limit), float("nan")))


@triton.constexpr_function
def limit_at_infinity(function):
    """The value of a function at k = inf."""
    return (-float("inf"), 1.0, 0.0, 0.0, 0.0, -float("inf"), float("inf"))[function]


@triton.jit
def vmf_inverse(x, c, F: tl.constexpr):
    """The k with A(k) = R, from R or 1 - R: Banerjee's start (at most 6.4% off), then two steps of Halley's method."""
    double: tl.constexpr = x.dtype == tl.float64
    largest: tl.constexpr = pick(double, MAX_64, MAX_32)
    inside = (x >= 0.0) & (x <= 1.0)
    given = tl.where(inside, x, 0.5)
    other = 1.0 - given  # exact where it is used: for x >= 1/2 (Sterbenz), or as the larger of the two
    r = given if F == FROM_RESULTANT else other
    complement = other if F == FROM_RESULTANT else given
    open_interval = (r > 0.0) & (complement > 0.0)
    r1 = tl.where(open_interval, r, 0.5)
    c1 = tl.where(open_interval, complement, 0.5)
    k = divide(divide(r1 * (tl.load(c + 1) + c1 * (1.0 + r1)), 1.0 + r1), c1)
    k = tl.minimum(k, largest)
    exact = r1 < pick(double, 1e-9, 1e-5)  # there the start is
    for _ in range(0, 2):
        a, low, first, second = vmf_regimes(k, c, F)
        f = tl.where(r1 < 0.5, a - r1, c1 - low)  # keeps its digits at both ends
        first = tl.where(exact, 1.0, first)
        step = divide(f, first)
        step = divide(step, 1.0 - 0.5 * step * divide(second, first))
        k = tl.where(exact, k, mad(-k, step, k))
    k = tl.where(k < largest, k, float("inf"))
    k = tl.where(open_interval, k, tl.where(r > 0.0, const(x, float("inf")), 0.0))
    return tl.where(inside, k, float("nan"))


@triton.jit
def vmf_kernel(
    k, constants, out, n, n1, n2, n3, s0, s1, s2, s3, DIMS: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out = F(k) for n elements; constants from `vmf_constants`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = load(k, offset(i, n1, n2, n3, s0, s1, s2, s3, DIMS), mask, 0.5)
    value = vmf_inverse(x, constants, F) if F >= FROM_RESULTANT else vmf_value(x, constants, F)
    store(out, i, value, mask)


def _launch(function: int, k: Tensor, dim: int) -> Tensor:
    shape, (k,), dims, integers = walk(k)
    out = torch.empty(shape, dtype=k.dtype, device=k.device)
    n = shape.numel()
    if n == 0:
        return out
    chosen = configuration("vmf", k.dtype)
    constants = vmf_constants(dim, torch.float64 if k.dtype is torch.float64 else torch.float32, k.device)
    with launching(k):
        vmf_kernel[(triton.cdiv(n, chosen.block),)](
            k, constants, out, n, *integers, DIMS=dims, F=function, BLOCK=chosen.block, **chosen.options
        )
    return out


def log_normalizer(k: Tensor, dim: int) -> Tensor:
    """log C_d(k)."""
    return _launch(0, k, dim)


def mean_resultant(k: Tensor, dim: int) -> Tensor:
    """A_d(k)."""
    return _launch(1, k, dim)


def complement(k: Tensor, dim: int) -> Tensor:
    """1 - A_d(k)."""
    return _launch(2, k, dim)


def resultant_derivative(k: Tensor, dim: int) -> Tensor:
    """A_d'(k)."""
    return _launch(3, k, dim)


def resultant_second(k: Tensor, dim: int) -> Tensor:
    """A_d''(k)."""
    return _launch(4, k, dim)


def entropy(k: Tensor, dim: int) -> Tensor:
    """-(log C_d(k) + k A_d(k))."""
    return _launch(5, k, dim)


def kl_uniform(k: Tensor, dim: int) -> Tensor:
    """KL to the uniform distribution."""
    return _launch(6, k, dim)


def concentration_from_resultant(r: Tensor, dim: int) -> Tensor:
    """The k with A_d(k) = r."""
    return _launch(7, r, dim)


def concentration_from_complement(c: Tensor, dim: int) -> Tensor:
    """The k with 1 - A_d(k) = c."""
    return _launch(8, c, dim)
