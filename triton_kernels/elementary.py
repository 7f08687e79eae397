"""Arithmetic, exponentials and logarithms for the Triton kernels, as csrc/math/elementary.h.

Every function takes blocks of float32 or of float64 and stays in that type: constants come in through `const`, because
Triton reads a bare Python float beside `tl.fma` as float32. Kernels are launched with ``enable_fp_fusion=False``: a
product is fused with a sum only where `tl.fma` says so, and never where an error is computed from a rounding.
"""

import triton
import triton.language as tl

LN2_HI_64 = tl.constexpr(0.6931471805598903)  # k ln2_hi is exact
LN2_LO_64 = tl.constexpr(5.497923018708371e-14)
LN2_HI_32 = tl.constexpr(0.693145751953125)
LN2_LO_32 = tl.constexpr(1.428606765330187e-06)
SQRT_HALF_64 = tl.constexpr(0x3FE6A09E667F3BCD)  # bits of sqrt(1/2)
SQRT_HALF_32 = tl.constexpr(0x3F3504F3)
MIN_NORMAL_64 = tl.constexpr(2.2250738585072014e-308)
MIN_NORMAL_32 = tl.constexpr(1.1754943508222875e-38)
MAX_64 = tl.constexpr(1.7976931348623157e308)
MAX_32 = tl.constexpr(3.4028234663852886e38)
TWO_54 = tl.constexpr(18014398509481984.0)

EXP_64 = tl.constexpr(
    (
        0.5,
        0.16666666666666685,
        0.04166666666666673,
        0.008333333333316739,
        0.0013888888888858623,
        0.00019841269897059047,
        2.4801587373399124e-05,
        2.7557234236906983e-06,
        2.7557233643259204e-07,
        2.5112239749814175e-08,
        2.0926857773632753e-09,
    )
)  # (e^r - 1 - r) / r^2
EXP_32 = tl.constexpr(
    (0.5, 0.1666666686035011, 0.041666270416484436, 0.008333264430845321, 0.0013946046828053975, 0.0001991834511120707)
)
LOG_64 = tl.constexpr(
    (
        0.6666666666666734,
        0.3999999999941436,
        0.2857142874246712,
        0.22222198564254322,
        0.1818356482720359,
        0.15314036844228912,
        0.14796095293137473,
    )
)  # (2 atanh(s) - 2 s) / s^3 in s^2
LOG_32 = tl.constexpr(
    (
        0.33333314022771754,
        -0.24999983831289102,
        0.20002188805782603,
        -0.16669485555474006,
        0.14217083623070106,
        -0.12377431891662166,
        0.11889016368151613,
        -0.11847163198037548,
        0.06937298139882009,
    )
)  # (log(1 + f) - f + f^2/2) / f^3


@triton.constexpr_function
def length(c):
    """The number of coefficients in a tuple."""
    return len(c)


@triton.constexpr_function
def pick(is_double, double, single):
    """One of two compile-time constants."""
    return double if is_double else single


@triton.constexpr_function
def integer_of(dtype):
    """The signed integer type of a float type's width."""
    return tl.int64 if dtype == tl.float64 else tl.int32


@triton.jit
def const(x, c: tl.constexpr):
    """The constant c in the shape and type of x."""
    return tl.full(x.shape, c, x.dtype)


@triton.jit
def mad(a, b, c):
    """a b + c; fused on a GPU, not in the interpreter: for polynomials, where either will do."""
    return tl.fma(a, b, c)


@triton.jit
def divide(a, b):
    """The correctly rounded quotient (`/` on float32 is an approximation)."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def reciprocal(b):
    """The correctly rounded 1 / b."""
    return divide(const(b, 1.0), b)


@triton.jit
def square_root(a):
    """The correctly rounded root."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def horner(x, c: tl.constexpr):
    """c[0] + c[1] x + ..."""
    n: tl.constexpr = length(c)
    p = const(x, c[n - 1])
    for i in tl.static_range(n - 2, -1, -1):
        p = mad(p, x, const(x, c[i]))
    return p


@triton.jit
def matmul(a, b, PRECISION: tl.constexpr):
    """a b by `tl.dot` in this input precision; None: without it, column by column."""
    if PRECISION is not None:
        return tl.dot(a, b, input_precision=PRECISION)
    else:
        lane = tl.arange(0, b.shape[1])[None, :]
        found = tl.zeros([a.shape[0], b.shape[1]], a.dtype)
        for k in range(0, b.shape[1]):
            column = tl.sum(tl.where(lane == k, b, 0.0), 1)
            found += tl.where(lane == k, tl.sum(a * column[None, :], 1)[:, None], 0.0)
        return found


@triton.jit
def any_of(mask):
    """True (a scalar) if some lane is."""
    return tl.max(mask.to(tl.int32)) > 0


@triton.jit
def round_to_integer(x):
    """The nearest integer, halves to even, |x| < 2^22."""
    if x.dtype == tl.float64:
        return (x + 6755399441055744.0) - 6755399441055744.0
    else:
        return (x + 12582912.0) - 12582912.0


@triton.jit
def pow2(n):
    """2^n for an integer-valued n in the range of normal exponents."""
    if n.dtype == tl.float64:
        return ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp_parts(x):
    """n, r and e^r - 1 - r with x = n ln 2 + r, |r| <= ln(2)/2."""
    double: tl.constexpr = x.dtype == tl.float64
    n = round_to_integer(x * 1.4426950408889634)
    hi = mad(-n, const(x, pick(double, LN2_HI_64, LN2_HI_32)), x)
    low = const(x, pick(double, LN2_LO_64, LN2_LO_32))
    r = mad(-n, low, hi)
    r_lo = mad(-n, low, hi - r)
    return n, r, mad(r * r, horner(r, pick(double, EXP_64, EXP_32)), r_lo)


@triton.jit
def exp(x):
    """e^x where it is a normal number: x in [-700, 700] (float32: [-87, 88])."""
    n, r, tail = exp_parts(x)
    return pow2(n) * (1.0 + (r + tail))


@triton.jit
def one_plus_exp(x):
    """1 + e^-x for any x, infinity where that of -87 (float64: -700) would be exceeded."""
    end: tl.constexpr = pick(x.dtype == tl.float64, 700.0, 87.0)
    far = x < -end
    near = tl.where(x > end, const(x, end), tl.where(far, const(x, 0.0), x))
    return tl.where(far, const(x, float("inf")), 1.0 + exp(-near))


@triton.jit
def log_parts(x):
    """k, f and 2^-k with x = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)), for a positive normal x."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) + (0x3FF0000000000000 - SQRT_HALF_64)
        exponent = bits >> 52
        f = ((bits & 0xFFFFFFFFFFFFF) + SQRT_HALF_64).to(tl.float64, bitcast=True) - 1.0
        return (exponent - 1023).to(tl.float64), f, ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True) + (0x3F800000 - SQRT_HALF_32)
        exponent = bits >> 23
        f = ((bits & 0x7FFFFF) + SQRT_HALF_32).to(tl.float32, bitcast=True) - 1.0
        return (exponent - 127).to(tl.float32), f, ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log_sum(k, f, tail):
    """k ln 2 + log(1 + f) + tail, where tail carries k ln2_lo and whatever f lost."""
    if f.dtype == tl.float64:
        s = f / (2.0 + f)
        z = s * s
        half_square = (0.5 * f) * f
        total = mad(horner(z, LOG_64), z, half_square)
        rest = mad(0.5 * f, f, -mad(s, total, tail))
        return mad(k, const(f, LN2_HI_64), f - rest)
    else:
        square = f * f
        rest = mad(square * f, horner(f, LOG_32), tail)
        return mad(k, const(f, LN2_HI_32), f + mad(const(f, -0.5), square, rest))


@triton.jit
def log_normal(x):
    """log of a positive normal number."""
    k, f, _ = log_parts(x)
    return log_sum(k, f, k * pick(x.dtype == tl.float64, LN2_LO_64, LN2_LO_32))


@triton.jit
def log(x):
    """log of any number: -inf of 0, nan of a negative one."""
    double: tl.constexpr = x.dtype == tl.float64
    small = x < pick(double, MIN_NORMAL_64, MIN_NORMAL_32)
    k, f, _ = log_parts(tl.where(small, x * TWO_54, x))
    k = tl.where(small, k - 54.0, k)
    y = log_sum(k, f, k * pick(double, LN2_LO_64, LN2_LO_32))
    y = tl.where(x < float("inf"), y, x)
    return tl.where(x > 0.0, y, tl.where(x == 0.0, -float("inf"), float("nan")))


@triton.jit
def log1p(x):
    """log(1 + x), x >= 0: 1 + x = u + u_lo exactly, and u_lo joins the reduced argument."""
    double: tl.constexpr = x.dtype == tl.float64
    u = 1.0 + x
    xx = u - 1.0
    u_lo = (1.0 - (u - xx)) + (x - xx)
    k, f0, inverse = log_parts(u)
    c = tl.where(x < 1e18, u_lo * inverse, 0.0)
    f = f0 + c
    f_lo = (f0 - f) + c
    y = log_sum(k, f, mad(k, const(x, pick(double, LN2_LO_64, LN2_LO_32)), mad(-f, f_lo, f_lo)))
    y = tl.where(x < pick(double, 5.5511151231257827e-17, 2.9802322387695312e-08), x, y)
    return tl.where(x < float("inf"), y, x)
