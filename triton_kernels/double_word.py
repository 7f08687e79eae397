"""Double-word numbers in Triton: pairs (hi, lo) with about twice the digits, and logarithms in them.

Algorithms: Dekker 1971, Knuth 1998 4.2.2, Joldes, Muller and Popescu 2017. Products are split as Dekker's, so that the
interpreter, whose `tl.fma` is not fused, computes the same bits as a GPU. As csrc/math/double_word*.h and bessel_log.h.
"""

import triton
import triton.language as tl

from .elementary import const, divide, horner, log_parts, mad, pick, reciprocal

# hi is a multiple of 2^-40 (float32: 2^-15), so that k ln2_hi and sums of such terms are exact.
LN2_HI_64 = tl.constexpr(0.6931471805601177038624883)
LN2_LO_64 = tl.constexpr(-1.7239444525614834773e-13)
LN2_HI_32 = tl.constexpr(0.693145751953125)
LN2_LO_32 = tl.constexpr(1.4286068203094172321e-6)

ATANH_64 = tl.constexpr(
    (
        0.666666666666666642,
        0.400000000000078145,
        0.285714285673329005,
        0.22222223038856737,
        0.181817383721763181,
        0.153888379824873658,
        0.132102953470532358,
        0.136045170627203226,
    )
)  # (2 atanh(s) - 2 s) / s^3 in s^2 for |s| <= 1/5
ATANH_32 = tl.constexpr((0.666667134146768496, 0.399790069669468317, 0.299559635271592001))


@triton.jit
def two_sum(a, b):
    """a + b exactly."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


@triton.jit
def fast_two_sum(a, b):
    """a + b exactly, where |a| >= |b| or a = 0."""
    s = a + b
    return s, b - (s - a)


@triton.jit
def two_prod(a, b):
    """a b exactly, barring underflow and overflow of a 2^27 (float32: a 2^12)."""
    split: tl.constexpr = pick(a.dtype == tl.float64, 134217729.0, 4097.0)
    p = a * b
    ca = a * split
    ah = ca - (ca - a)
    al = a - ah
    cb = b * split
    bh = cb - (cb - b)
    bl = b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


@triton.jit
def residual(a, b, c):
    """a - b c as if rounded once, or nearly."""
    p, e = two_prod(b, c)
    return (a - p) - e


@triton.jit
def add(a, b):
    """(a0, a1) + b for a single word b."""
    s, e = two_sum(a[0], b)
    return fast_two_sum(s, a[1] + e)


@triton.jit
def add2(a, b):
    """The sum of two pairs."""
    s, e = two_sum(a[0], b[0])
    t, f = two_sum(a[1], b[1])
    v, g = fast_two_sum(s, e + t)
    return fast_two_sum(v, f + g)


@triton.jit
def mul(a, b):
    """(a0, a1) b for a single word b."""
    p, e = two_prod(a[0], b)
    return fast_two_sum(p, mad(a[1], b, e))


@triton.jit
def mul2(a, b):
    """The product of two pairs."""
    p, e = two_prod(a[0], b[0])
    return fast_two_sum(p, e + mad(a[0], b[1], a[1] * b[0]))


@triton.jit
def atanh_rest(s):
    """2 atanh(s) - 2 s for |s| <= 1/5."""
    z = s * s
    return z * s * horner(z, pick(s.dtype == tl.float64, ATANH_64, ATANH_32))


@triton.jit
def ratio_scale(a, b):
    """k with 2/3 <= (a / b) 2^-k <= 3/2, and 2^-k: the bit patterns differ by log2(a/b), mantissas taken as linear."""
    if a.dtype == tl.float64:
        e = (a.to(tl.int64, bitcast=True) - b.to(tl.int64, bitcast=True) + (1 << 51)) >> 52
        return e.to(tl.float64), ((1023 - e) << 52).to(tl.float64, bitcast=True)
    else:
        e = (a.to(tl.int32, bitcast=True) - b.to(tl.int32, bitcast=True) + (1 << 22)) >> 23
        return e.to(tl.float32), ((127 - e) << 23).to(tl.float32, bitcast=True)


@triton.jit
def ratio_log(a, b):
    """k, (s, s_lo) with log(a / b) = k ln 2 + 2 atanh(s) for positive pairs: the difference is exact (Sterbenz)."""
    k, inverse = ratio_scale(a[0], b[0])
    a_hi = a[0] * inverse
    a_lo = a[1] * inverse
    num = a_hi - b[0]
    num_lo = a_lo - b[1]
    den, den_lo = two_sum(a_hi, b[0])
    r = reciprocal(den)
    s = (num + num_lo) * r
    rest = residual(num, s, den) + (num_lo - s * (den_lo + (a_lo + b[1])))
    return k, s, rest * r


@triton.jit
def ratio_log_value(k, s, s_lo):
    """k ln 2 + 2 atanh(s + s_lo) to working precision."""
    double: tl.constexpr = k.dtype == tl.float64
    low = mad(k, const(k, pick(double, LN2_LO_64, LN2_LO_32)), mad(const(k, 2.0), s_lo, atanh_rest(s)))
    return mad(k, const(k, pick(double, LN2_HI_64, LN2_HI_32)), mad(const(k, 2.0), s, low))


@triton.jit
def log_ratio(a, b):
    """The same for positive single words."""
    k, inverse = ratio_scale(a, b)
    m = a * inverse
    num = m - b
    den, den_lo = two_sum(m, b)
    r = reciprocal(den)
    s = num * r
    return k, s, (residual(num, s, den) - s * den_lo) * r


@triton.jit
def split_log(a):
    """k and rest with log(a) = k ln 2 + rest for positive normal a."""
    k, f, _ = log_parts(a)
    s = divide(f, 2.0 + f)
    return k, (s + s) + atanh_rest(s)


# 1/3, 1/5, 1/7 in two words, and the rest of (atanh(s)/s - 1)/s^2 in s^2.
THIRDS_64 = tl.constexpr(
    (
        (0.3333333333333333, 1.850371707708594e-17),
        (0.2, -1.1102230246251566e-17),
        (0.14285714285714285, 7.93016446160826e-18),
        (0.1111111111111111, 6.1679056923619804e-18),
        (0.09090909090909091, -2.523234146875356e-18),
        (0.07692307692307693, -4.270088556250602e-18),
    )
)
THIRDS_32 = tl.constexpr(
    (
        (0.3333333432674408, -9.934107758624577e-09),
        (0.20000000298023224, -2.9802322831784522e-09),
        (0.1428571492433548, -6.38621200366174e-09),
    )
)
SERIES_64 = tl.constexpr(
    (
        0.06666666666666667,
        0.05882352941176744,
        0.05263157894542826,
        0.047619048144058526,
        0.04347819117824279,
        0.0400050132494927,
        0.03683811202305819,
        0.03854811636619727,
    )
)
SERIES_32 = tl.constexpr((0.11111111074209583, 0.09090948934990034, 0.07685594418105406, 0.07026590813583218))
LN2_WORDS_64 = tl.constexpr((0.6931471805598903, 5.4979230187085024e-14, -1.3124698417785255e-27))
LN2_WORDS_32 = tl.constexpr((0.693145751953125, 1.4286197256296873e-06, -1.2905320270077144e-11))


@triton.jit
def series_step(c, c_lo, z, z_lo, t, t_lo):
    """c + z t, not renormalised; |z t| well below |c|."""
    p, p_lo = two_prod(z, t)
    hi = c + p
    error = ((c - hi) + p) + p_lo
    return hi, mad(z, t_lo, mad(z_lo, t, error + c_lo))


@triton.jit
def log_dw(a, a_low):
    """log of a normalised pair in two words, to nearly twice the working precision, also next to 1."""
    double: tl.constexpr = a.dtype == tl.float64
    words: tl.constexpr = pick(double, THIRDS_64, THIRDS_32)
    ln2: tl.constexpr = pick(double, LN2_WORDS_64, LN2_WORDS_32)
    k, f0, inverse_scale = log_parts(a)
    f, f_lo = fast_two_sum(f0, a_low * inverse_scale)
    d, d_lo = fast_two_sum(const(a, 2.0), f)
    r = reciprocal(2.0 + f0)
    # s = f / (2 + f): a quotient, good to two units, and its remainder
    s = f * r
    s_lo = (residual(f, s, d) + mad(-s, d_lo + f_lo, f_lo)) * r
    z, z_lo = two_prod(s, s)
    z_lo = mad(s + s, s_lo, z_lo)
    t = horner(z, pick(double, SERIES_64, SERIES_32))
    t_lo = const(a, 0.0)
    for i in tl.static_range(pick(double, 5, 2), -1, -1):
        t, t_lo = series_step(const(a, words[i][0]), const(a, words[i][1]), z, z_lo, t, t_lo)
    cube, cube_lo = two_prod(s + s, z)  # 2 s^3
    cube_lo = mad(s + s, z_lo, mad(s_lo + s_lo, z, cube_lo))
    y, y_lo = series_step(s + s, s_lo + s_lo, cube, cube_lo, t, t_lo)
    # Largest first; k times each of the first two words is exact.
    head, head_lo = fast_two_sum(k * ln2[0], y)
    middle, middle_lo = two_sum(k * ln2[1], head_lo)
    top, top_lo = fast_two_sum(head, middle)
    return fast_two_sum(top, top_lo + (middle_lo + mad(k, const(a, ln2[2]), y_lo)))
