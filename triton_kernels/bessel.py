"""log I_v, log K_v, their scaled forms, ratios of neighbouring orders, and first and second derivatives, in Triton.

One pass: reads v and x once (a broadcast order where it lies), writes each result once. An element belongs to one
regime: Debye's expansion for hypot(v, x) >= 25 (float32: 10), below it a power series for I, Temme's formula or
polynomials for K, and the rim of the domain; a block evaluates a regime if one of its elements is in it. float16 and
bfloat16 compute in float32, which involves no float64 instruction.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .debye import BESSEL_TIERS_32, BESSEL_TIERS_64, debye, debye_tier, is_k
from .edge import edge, is_edge
from .elementary import any_of, const, pick, round_to_integer
from .k_large import k_large
from .k_recurrence import uses_temme
from .k_temme import k_temme
from .series import TERMS_32, TERMS_64, iv_series, series_terms
from .strided import launching, load, offset, store, walk

FUNCTIONS = ("log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "kv_ratio")
# By the order of the derivative.
TABLES = ("bessel_value", "bessel_grad", "bessel_hess")


@triton.jit
def evaluate(v, x, F: tl.constexpr, ORDER: tl.constexpr):
    """F (ORDER 0), its gradient (1) or its three second derivatives (2) as three blocks."""
    double: tl.constexpr = v.dtype == tl.float64
    radius: tl.constexpr = pick(double, 25.0, 10.0)
    square = v * v + x * x
    on_edge = is_edge(v, x)
    large = ~on_edge & (square >= radius * radius)
    small = ~on_edge & (square < radius * radius)
    a = const(v, 0.0)
    b = a
    c = a
    if any_of(large):
        tier = debye_tier(large, square, pick(double, BESSEL_TIERS_64, BESSEL_TIERS_32))
        p, q, r = debye(tl.where(large, v, 60.0), tl.where(large, x, 60.0), tier, F, ORDER)
        a = tl.where(large, p, a)
        b = tl.where(large, q, b)
        c = tl.where(large, r, c)
    if is_k(F):
        steps = tl.max(tl.where(small, round_to_integer(tl.where(small, v, 0.0)), 0.0)).to(tl.int32)
        near = small & uses_temme(v, x)
        far = small & ~near
        if any_of(near):
            p, q, r = k_temme(tl.where(near, v, 0.0), tl.where(near, x, 0.125), steps, F, ORDER)
            a = tl.where(near, p, a)
            b = tl.where(near, q, b)
            c = tl.where(near, r, c)
        if any_of(far):
            p, q, r = k_large(tl.where(far, v, 0.0), tl.where(far, x, 2.0), steps, F, ORDER)
            a = tl.where(far, p, a)
            b = tl.where(far, q, b)
            c = tl.where(far, r, c)
    else:
        if any_of(small):
            terms = series_terms(tl.max(tl.where(small, x, 0.0)), pick(double, TERMS_64, TERMS_32))
            p, q, r = iv_series(tl.where(small, v, 0.0), tl.where(small, x, 1.0), terms, F, ORDER)
            a = tl.where(small, p, a)
            b = tl.where(small, q, b)
            c = tl.where(small, r, c)
    if any_of(on_edge):
        p, q, r = edge(v, x, F, ORDER)
        a = tl.where(on_edge, p, a)
        b = tl.where(on_edge, q, b)
        c = tl.where(on_edge, r, c)
    return a, b, c


@triton.jit
def bessel_kernel(
    v, x, out0, out1, out2, n, n1, n2, n3, v0, v1, v2, v3, x0, x1, x2, x3,
    DIMS: tl.constexpr, F: tl.constexpr, ORDER: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out0 (and out1, out2 for derivatives) of n elements; FIRST and SECOND: which of a gradient are wanted."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    order = load(v, offset(i, n1, n2, n3, v0, v1, v2, v3, DIMS), mask, 0.0)
    argument = load(x, offset(i, n1, n2, n3, x0, x1, x2, x3, DIMS), mask, 100.0)
    a, b, c = evaluate(order, argument, F, ORDER)
    if FIRST:
        store(out0, i, a, mask)
    if SECOND:
        store(out1, i, b, mask)
    if ORDER == 2:
        store(out2, i, c, mask)


def _launch(function: int, order: int, v: Tensor, x: Tensor, wanted: tuple[bool, ...]) -> tuple[Tensor, ...]:
    shape, (v, x), dims, integers = walk(v, x)
    out = tuple(torch.empty(shape if w else 0, dtype=x.dtype, device=x.device) for w in wanted)
    n = shape.numel()
    if n == 0:
        return out
    chosen = configuration(TABLES[order], x.dtype)
    first, second, third = (*out, out[0], out[0])[:3]
    with launching(x):
        bessel_kernel[(triton.cdiv(n, chosen.block),)](
            v, x, first, second, third, n, *integers,
            DIMS=dims, F=function, ORDER=order, FIRST=wanted[0], SECOND=len(wanted) > 1 and wanted[1],
            BLOCK=chosen.block, **chosen.options,
        )  # fmt: skip
    return out


def _value(function: int, v: Tensor, x: Tensor) -> Tensor:
    return _launch(function, 0, v, x, (True,))[0]


def log_iv(v: Tensor, x: Tensor) -> Tensor:
    """log I_v(x)."""
    return _value(0, v, x)


def log_ive(v: Tensor, x: Tensor) -> Tensor:
    """log(e^-x I_v(x))."""
    return _value(1, v, x)


def log_kv(v: Tensor, x: Tensor) -> Tensor:
    """log K_v(x)."""
    return _value(2, v, x)


def log_kve(v: Tensor, x: Tensor) -> Tensor:
    """log(e^x K_v(x))."""
    return _value(3, v, x)


def iv_ratio(v: Tensor, x: Tensor) -> Tensor:
    """I_{v+1}(x) / I_v(x)."""
    return _value(4, v, x)


def kv_ratio(v: Tensor, x: Tensor) -> Tensor:
    """K_{v+1}(x) / K_v(x)."""
    return _value(5, v, x)


def bessel_grad(v: Tensor, x: Tensor, function: int, need_v: bool, need_x: bool) -> tuple[Tensor, Tensor]:
    """(dF/dv, dF/dx) of FUNCTIONS[function]; what is not wanted has no elements."""
    dv, dx = _launch(function, 1, v, x, (need_v, need_x))
    return dv, dx


def bessel_hess(v: Tensor, x: Tensor, function: int) -> tuple[Tensor, Tensor, Tensor]:
    """(d2F/dv2, d2F/dvdx, d2F/dx2) of FUNCTIONS[function]."""
    vv, vx, xx = _launch(function, 2, v, x, (True, True, True))
    return vv, vx, xx
