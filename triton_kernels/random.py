"""Fills with counter-based random numbers in Triton, and sums of normals: the numbers of csrc/math/random.h.

A lane makes one Philox block of four words and the four elements (float64: two) that come of it. Reads nothing but
sample ids, where given, and the seed and step that lie in device memory; writes the output once, where it lies.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import LN2_LO_32, LN2_LO_64, const, horner, log_normal, log_parts, log_sum, mad, pick, square_root
from .strided import DIMENSIONS, collapse, launching, offset, store

# Of every kernel that draws: they change from call to call, and neither 1 nor a multiple of 16 may cost a compilation.
COUNTERS = ("seed", "counter1", "step", "first_id", "row")

# The order of math::RandomKind in csrc/math/random.h.
BITS = tl.constexpr(0)
UNIFORM = tl.constexpr(1)
NORMAL = tl.constexpr(2)
GUMBEL = tl.constexpr(3)
EXPONENTIAL = tl.constexpr(4)
RADEMACHER = tl.constexpr(5)

# Cephes' logf, sinf and cosf (csrc/math/normal.h).
LOG = tl.constexpr(
    (
        3.3333331174e-1,
        -2.4999993993e-1,
        2.0000714765e-1,
        -1.6668057665e-1,
        1.4249322787e-1,
        -1.2420140846e-1,
        1.1676998740e-1,
        -1.1514610310e-1,
        7.0376836292e-2,
    )
)
SIN_32 = tl.constexpr((-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4))
COS_32 = tl.constexpr((4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5))
# (sin(2 pi r) / r - 2 pi) / r^2 and (cos(2 pi r) - 1 + 2 pi^2 r^2) / r^4 (csrc/math/elementary.h).
SIN_64 = tl.constexpr(
    (
        -41.34170224039976,
        81.60524927607497,
        -76.70585975300862,
        42.058693930279375,
        -15.09464047680047,
        3.8197896427628484,
        -0.7116347006186882,
    )
)
COS_64 = tl.constexpr(
    (
        64.9393940226683,
        -85.4568172066937,
        60.24464137185823,
        -26.42625677826818,
        7.903535637801509,
        -1.7143338009652236,
        0.2797403919581455,
    )
)


@triton.jit
def uniform_32(w):
    """(w + 1/2) / 2^32, correctly rounded (the product is exact)."""
    u = w.to(tl.float32)
    return tl.fma(u, const(u, 2.0**-32), const(u, 2.0**-33))


@triton.jit
def uniform_64(high, low):
    """(j + 1/2) / 2^53 of the upper 53 bits, correctly rounded."""
    j = high.to(tl.float64) * 2097152.0 + (low >> 11).to(tl.float64)
    return j * 2.0**-53 + 2.0**-54


@triton.jit
def turned(r, cosine, sine, w):
    """(r cos, r sin) turned by the quadrant in the top two bits of w."""
    odd = (w & 0x40000000) != 0
    upper = (w & 0x80000000) != 0
    c = tl.where(odd, -sine, cosine)
    s = tl.where(odd, cosine, sine)
    return r * tl.where(upper, -c, c), r * tl.where(upper, -s, s)


@triton.jit
def normal_pair_32(w0, w1):
    """Two float32 normals of two words."""
    k, x, _ = log_parts(uniform_32(w0))
    z = x * x
    y = mad(k, const(x, -2.12194440e-4), (horner(x, LOG) * x) * z)
    y = mad(const(x, -0.5), z, y)
    r = square_root(-2.0 * mad(k, const(x, 0.693359375), x + y))
    part = ((w1 & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32)
    a = part * 1.4629180792671596e-9  # 2 pi / 2^32
    z = a * a
    sine = mad(horner(z, SIN_32) * z, a, a)
    cosine = mad(horner(z, COS_32), z * z, mad(const(a, -0.5), z, const(a, 1.0)))
    return turned(r, cosine, sine, w1)


@triton.jit
def normal_pair_64(w0, w1, w2, w3):
    """Two float64 normals of four words."""
    r = square_root(-2.0 * log_normal(uniform_64(w0, w1)))
    part = (w2 & 0x3FFFFFFF).to(tl.float64) - 536870912.0
    a = w3.to(tl.float64) * 2.0**-64 + part * 2.0**-32  # turns, at most 1/8
    z = a * a
    sine = mad(a, const(a, 6.283185307179586), a * mad(z, horner(z, SIN_64), const(a, 2.4492935982947064e-16)))
    head = mad(const(a, -19.739208802178716), z, const(a, 1.0))
    rest = mad(const(a, -19.739208802178716), z, 1.0 - head)
    cosine = head + mad(z, mad(z, horner(z, COS_64), const(a, -1.2530591017479423e-15)), rest)
    return turned(r, cosine, sine, w2)


@triton.jit
def exponential_of(u, upper):
    """-ln(1 - u), or -ln u where `upper`; near 0 from u itself, which has the digits that 1 - u has lost."""
    k, f, _ = log_parts(tl.where(upper, u, 1.0 - u))
    f = tl.where((k == 0.0) & (upper == 0), -u, f)
    return -log_sum(k, f, k * pick(u.dtype == tl.float64, LN2_LO_64, LN2_LO_32))


@triton.jit
def element_32(w, KIND: tl.constexpr):
    """The element of one word."""
    if KIND == BITS:
        return w
    elif KIND == UNIFORM:
        return uniform_32(w)
    elif KIND == RADEMACHER:
        return tl.where((w & 0x80000000) != 0, -1.0, 1.0)
    else:
        upper = (w & 0x80000000) != 0
        e = exponential_of(uniform_32(tl.where(upper, w ^ 0xFFFFFFFF, w)), upper)
        return -log_normal(e) if KIND == GUMBEL else e


@triton.jit
def element_64(high, low, KIND: tl.constexpr):
    """The float64 element of two words."""
    if KIND == UNIFORM:
        return uniform_64(high, low)
    else:
        upper = (high & 0x80000000) != 0
        flip = tl.where(upper, high | 0xFFFFFFFF, high ^ high)  # all ones or zeros
        e = exponential_of(uniform_64(high ^ flip, low ^ flip), upper)
        return -log_normal(e) if KIND == GUMBEL else e


@triton.jit
def numbers_of(seed, block, counter1, low, high, KIND: tl.constexpr, WIDE: tl.constexpr):
    """The elements of a block (float64: the first two of the four are used)."""
    w0, w1, w2, w3 = tl.philox(seed, block, counter1, low, high)
    if WIDE:
        if KIND == NORMAL:
            a, b = normal_pair_64(w0, w1, w2, w3)
        else:
            a = element_64(w0, w1, KIND)
            b = element_64(w2, w3, KIND)
        return a, b, a, b
    elif KIND == NORMAL:
        a, b = normal_pair_32(w0, w1)
        c, d = normal_pair_32(w2, w3)
        return a, b, c, d
    else:
        return element_32(w0, KIND), element_32(w1, KIND), element_32(w2, KIND), element_32(w3, KIND)


@triton.jit
def counters_of(
    seed_at, step_at, ids, row, seed, counter1, first_id, mask, SEED: tl.constexpr, STEP: tl.constexpr,
    IDS: tl.constexpr
):  # fmt: skip
    """The seed, the counter of step and stream, and the sample ids of rows; SEED, STEP, IDS: read from memory."""
    if SEED:
        seed = tl.load(seed_at)
    if STEP:
        counter1 = counter1 | (tl.load(step_at) & 0xFFFFFF)
    if IDS:
        return seed, counter1, tl.load(ids + row, mask=mask, other=0)
    else:
        return seed, counter1, first_id + row


@triton.jit
def numbers_at(seed, block, counter1, sample, KIND: tl.constexpr, WIDE: tl.constexpr):
    """The numbers of a block a lane."""
    one = block * 0
    c1, low, high = one + counter1, one + (sample & 0xFFFFFFFF), one + ((sample >> 32) & 0xFFFFFFFF)
    return numbers_of(
        seed, (block & 0xFFFFFFFF).to(tl.uint32), (c1 & 0xFFFFFFFF).to(tl.uint32), low.to(tl.uint32),
        high.to(tl.uint32), KIND, WIDE,
    )  # fmt: skip


@triton.jit
def rows_at(seed, block, counter1, sample, KIND: tl.constexpr, WIDE: tl.constexpr):
    """The same side by side: (lanes, 4) or, in float64, (lanes, 2)."""
    z0, z1, z2, z3 = numbers_at(seed, block, counter1, sample, KIND, WIDE)
    if WIDE:
        return tl.join(z0, z1)
    else:
        z = tl.join(tl.join(z0, z2), tl.join(z1, z3))
        return tl.reshape(z, [z.shape[0], 4])


@triton.jit
def put(out, base, i, n, n1, n2, n3, s0, s1, s2, s3, x, mask, KIND: tl.constexpr, DIMS: tl.constexpr):
    """x as element i of its sample, if it has one."""
    at = base + offset(i, n1, n2, n3, s0, s1, s2, s3, DIMS)
    inside = mask & (i >= 0) & (i < n)
    if KIND == BITS:
        if out.dtype.element_ty == tl.int64:
            tl.store(out + at, x.to(tl.int64), mask=inside)
        else:
            tl.store(out + at, x.to(tl.int32, bitcast=True), mask=inside)
    else:
        store(out, at, x, inside)


@triton.jit(do_not_specialize=COUNTERS)
def random_kernel(
    out, seed_at, step_at, ids, coefficients, nodes, batch, blocks, first_block, shift, n, batch_stride,
    n1, n2, n3, s0, s1, s2, s3, seed: tl.int64, counter1: tl.int64, first_id: tl.int64, terms, coefficient_stride,
    node_stride, KIND: tl.constexpr, WIDE: tl.constexpr, DIMS: tl.constexpr, SEED: tl.constexpr, STEP: tl.constexpr,
    IDS: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One lane a Philox block; SEED, STEP, IDS: read from memory; SUM: sums of normals, else numbers of KIND."""
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = t // blocks
    mask = b < batch  # a product may leave 32 bits
    block = first_block + t % blocks
    seed, counter1, sample = counters_of(
        seed_at, step_at, ids, b, seed, counter1, first_id, mask, SEED, STEP, IDS
    )  # fmt: skip
    if SUM:
        x0 = tl.zeros([BLOCK], tl.float64 if WIDE else tl.float32)
        x1 = x0
        x2 = x0
        x3 = x0
        for j in range(0, terms):
            c = tl.load(coefficients + b * coefficient_stride + j, mask=mask, other=0.0)
            node = tl.load(nodes + b * node_stride + j, mask=mask, other=0)
            z0, z1, z2, z3 = numbers_at(seed, block, node, sample, KIND, WIDE)
            used = c != 0.0
            x0 = tl.where(used, mad(c, z0, x0), x0)
            x1 = tl.where(used, mad(c, z1, x1), x1)
            x2 = tl.where(used, mad(c, z2, x2), x2)
            x3 = tl.where(used, mad(c, z3, x3), x3)
    else:
        x0, x1, x2, x3 = numbers_at(seed, block, counter1, sample, KIND, WIDE)
    base = b * batch_stride
    per: tl.constexpr = 2 if WIDE else 4
    i = block * per - shift
    put(out, base, i, n, n1, n2, n3, s0, s1, s2, s3, x0, mask, KIND, DIMS)
    put(out, base, i + 1, n, n1, n2, n3, s0, s1, s2, s3, x1, mask, KIND, DIMS)
    if not WIDE:
        put(out, base, i + 2, n, n1, n2, n3, s0, s1, s2, s3, x2, mask, KIND, DIMS)
        put(out, base, i + 3, n, n1, n2, n3, s0, s1, s2, s3, x3, mask, KIND, DIMS)


def _launch(
    like: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    ids: Tensor | None,
    kind: int,
    size: Any,
    seed_value: int,
    counter1: int,
    first: int,
    shift: int,
    out: Tensor | None,
    tables: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    if out is None:
        out = torch.empty(size, dtype=like.dtype, device=like.device)
    n = out[0].numel() if len(out) else 0
    if n == 0:
        return out
    sizes, steps = collapse(out.shape[1:], out.stride()[1:])
    if len(sizes) > DIMENSIONS:
        return out.copy_(_launch(like, seed, step, ids, kind, size, seed_value, counter1, first, shift, None, tables))
    pad = DIMENSIONS - len(sizes)
    wide = out.dtype is torch.float64 and kind != RADEMACHER.value
    per = 2 if wide else 4
    first_block = shift // per
    blocks = (shift + n + per - 1) // per - first_block
    chosen = configuration("random", torch.float64 if wide else torch.float32)
    words = out.view(torch.int32) if kind == BITS.value and out.itemsize == 4 else out
    c, nodes = (words, words) if tables is None else tables
    strides = [0, 0] if tables is None else [t.shape[1] if len(t) > 1 else 0 for t in tables]
    with launching(out):
        random_kernel[(triton.cdiv(len(out) * blocks, chosen.block),)](
            words, words if seed is None else seed, words if step is None else step, words if ids is None else ids,
            c, nodes, len(out), blocks, first_block, shift, n, out.stride(0),
            *([1] * pad + sizes)[1:], *([0] * pad + steps[0]), seed_value, counter1, first,
            0 if tables is None else c.shape[1], *strides,
            KIND=kind, WIDE=wide, DIMS=max(1, DIMENSIONS - pad), SEED=seed is not None, STEP=step is not None,
            IDS=ids is not None, SUM=tables is not None, BLOCK=chosen.block, **chosen.options,
        )  # fmt: skip
    return out


def fill(
    like: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    ids: Tensor | None,
    kind: int,
    size: Any,
    seed_value: int,
    step_value: int,
    stream: int,
    first: int,
    shift: int,
    out: Tensor | None = None,
) -> Tensor:
    """Numbers of a kind; the arguments are those of `_random_ops.fill`."""
    counter1 = step_value | stream << 24
    return _launch(like, seed, step, ids, kind, size, seed_value, counter1, first, shift, out)


def normal_sum(
    like: Tensor,
    seed: Tensor | None,
    ids: Tensor | None,
    coefficients: Tensor,
    nodes: Tensor,
    size: Any,
    seed_value: int,
    first: int,
    shift: int,
    out: Tensor | None = None,
) -> Tensor:
    """Sums of normals; the arguments are those of `_random_ops.normal_sum`."""
    wide = (like if out is None else out).dtype is torch.float64
    tables = (coefficients if wide else coefficients.float()).contiguous(), nodes.contiguous()
    return _launch(like, seed, None, ids, NORMAL.value, size, seed_value, 0, first, shift, out, tables)
