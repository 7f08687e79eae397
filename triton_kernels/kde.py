"""Density sums in Triton: an online softmax over tiles of the data, as csrc/common/kde_sums.h describes it.

A program takes BLOCK queries and one chunk of value columns. Distances are sums of squared (absolute) differences, 32
dimensions at a time with the roundings between those sums carried along; for a gaussian in float32, from 16 dimensions
on, they are inner products about the data's mean on the tensor cores. Every `tl.dot` names its input precision, and
nothing here is rounded to tf32: float32 operands are split into three bfloat16 terms each ("bf16x6": as accurate as
float32 products), and sums over BK dimensions are added up outside of the tensor cores, which truncate. With
``highest`` a second launch does in float64 those rows that float32 left in doubt; programs without such a row read
nothing. Values of more than BV columns cost the distances again for every further chunk. Sums over a tile are added up
in float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import any_of, const, divide, exp, log_normal, mad, matmul, pick, square_root
from .kde_pairs import pair
from .strided import dot_precision, launching

INF = tl.constexpr(float("inf"))
# What the values are.
NONE, GIVEN, DISPLACEMENT, SLOPE = (tl.constexpr(i) for i in range(4))
# Along what the bandwidth varies.
ONE, QUERY, DATUM = (tl.constexpr(i) for i in range(3))
DEPTH = tl.constexpr(32)
MOST_BATCHES = 65535  # of a grid's third dimension

# The kernel's pointers by what they point to (tools/triton_aot.py).
VALUES_OF_DTYPE = ("x", "y", "v", "values")
DOUBLES = ("centre", "bandwidth", "bias", "weight", "shift", "nu_at", "log_sum", "square", "delta")


@triton.jit
def weight_of(t):
    """e^t, 0 where that is no normal number; t <= about 0, or NaN."""
    low: tl.constexpr = pick(t.dtype == tl.float64, -700.0, -87.0)
    high: tl.constexpr = pick(t.dtype == tl.float64, 700.0, 88.0)
    inside = tl.where(t < low, const(t, low), tl.where(t > high, const(t, high), t))
    return tl.where(t < low, 0.0, exp(inside))


@triton.jit
def largest(t):
    """The largest finite number of t's type."""
    return const(t, pick(t.dtype == tl.float64, 1.7976931348623157e308, 3.4028234663852886e38))


@triton.jit
def coordinates(pointer, mask, C: tl.constexpr):
    """Coordinates of queries: one at infinity has no weight, also beside a datum at infinity."""
    x = tl.load(pointer, mask=mask, other=0.0).to(C)
    return tl.where(x == INF, largest(x), tl.where(x == -INF, -largest(x), x))


@triton.jit
def differences(xr, yr, rows, columns, d, ABSOLUTE: tl.constexpr, C: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr):
    """Squared (L1) distances of a tile by differences."""
    total = tl.zeros((BN, BM), C)
    carry = tl.zeros((BN, BM), C)
    for k0 in range(0, d, DEPTH):
        part = tl.zeros((BN, BM), C)
        for k in range(k0, min(k0 + DEPTH, d)):
            a = coordinates(xr + k, rows, C)
            b = tl.load(yr + k, mask=columns, other=0.0).to(C)
            step = a[:, None] - b[None, :]
            part = part + tl.abs(step) if ABSOLUTE else mad(step, step, part)
        after = total + part
        carry += part - (after - total)
        total = after
    r = tl.where(total < INF, total + carry, total)
    return tl.where(r >= largest(r), INF, r) if ABSOLUTE else r


@triton.jit
def products(
    xr, yr, centre, rows, columns, d,
    C: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Squared distances of a tile from inner products about the centre (a float32), and the squared norms."""
    dot = tl.zeros((BN, BM), C)
    x_norm = tl.zeros((BN,), C)
    y_norm = tl.zeros((BM,), C)
    for k0 in range(0, d, BK):
        k = k0 + tl.arange(0, BK)
        c = tl.load(centre + k, mask=k < d, other=0.0).to(C)
        a = tl.load(xr[:, None] + k[None, :], mask=rows[:, None] & (k < d)[None, :], other=0.0).to(C)
        b = tl.load(yr[:, None] + k[None, :], mask=columns[:, None] & (k < d)[None, :], other=0.0).to(C)
        a = tl.where(rows[:, None], a - c[None, :], 0.0)
        b = tl.where(columns[:, None], b - c[None, :], 0.0)
        x_norm += tl.sum(a * a, 1)
        y_norm += tl.sum(b * b, 1)
        dot += matmul(a, tl.trans(b), SPLIT)
    r = (x_norm[:, None] + y_norm[None, :]) - 2.0 * dot
    return tl.where(r < 0.0, 0.0, r), x_norm, y_norm


@triton.jit
def kde_kernel(
    x, y, v, centre, bandwidth, bias, weight, shift, nu_at, log_sum, values, square, delta, doubt, n, m, d, dv, exclude,
    KERNEL: tl.constexpr, WIDE: tl.constexpr, VALUES: tl.constexpr, PER: tl.constexpr, BIAS: tl.constexpr,
    WEIGHT: tl.constexpr, FIXED: tl.constexpr, EXCLUDE: tl.constexpr, SQUARE: tl.constexpr, DELTA: tl.constexpr,
    PRODUCT: tl.constexpr, DIRECT: tl.constexpr, MARK: tl.constexpr, AGAIN: tl.constexpr,
    BLOCK: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One block of queries against all data; program (query block, value chunk, batch)."""
    C: tl.constexpr = tl.float64 if WIDE else tl.float32
    ABSOLUTE: tl.constexpr = KERNEL == 1
    COMPACT: tl.constexpr = KERNEL >= 6
    batch = tl.program_id(2).to(tl.int64)
    chunk = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rows = i < n
    end = m
    if AGAIN:
        rows = rows & (tl.load(doubt + batch * n + i, mask=rows, other=0) != 0)
        end = tl.where(any_of(rows), m, 0)
    xr = x + (batch * n + i) * d
    nu = tl.load(nu_at).to(C)
    p = 0.5 * (nu + d)
    h = tl.zeros((BLOCK,), tl.float64) + 1.0
    if PER == ONE:
        h = h * tl.load(bandwidth + batch)
    if PER == QUERY:
        h = tl.load(bandwidth + batch * n + i, mask=rows, other=1.0)
    inverse = 1.0 / (h if ABSOLUTE else h * h)
    scale = inverse.to(C)
    top = -largest(tl.zeros((BLOCK,), C))
    if FIXED:
        top = tl.load(shift + batch * n + i, mask=rows, other=0.0).to(C)
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    deltas = tl.zeros((BLOCK,), tl.float64)
    slopes = tl.zeros((BLOCK,), tl.float64)
    cols = chunk * BV + tl.arange(0, BV)
    mean = tl.zeros((BLOCK, BV), C)
    top_bias = tl.full((1,), -INF, tl.float64)
    x_norm = tl.zeros((BLOCK,), C)
    far = tl.zeros((1,), C)
    SHARES: tl.constexpr = SQUARE or (PRODUCT and MARK)  # how many data share a row's sum tells what errors average
    PV: tl.constexpr = SPLIT if PRODUCT or SPLIT is None else "ieee"

    for j0 in range(0, end, BM):
        j = j0 + tl.arange(0, BM)
        columns = j < m
        at = batch * m + j
        yr = y + at * d
        b = tl.where(columns, 0.0, -INF).to(tl.float64)
        if BIAS:
            b = tl.load(bias + at, mask=columns, other=-INF)
            b = tl.where(b == INF, float("nan"), b)
        u = tl.zeros((BM,), C) + 1.0
        if WEIGHT:
            u64 = tl.load(weight + at, mask=columns, other=0.0)
            b = tl.where(u64 == 0.0, -INF, b)
            u = u64.to(C)
        top_bias = tl.maximum(top_bias, tl.max(b, 0, keep_dims=True))
        if PRODUCT:
            r, x_norm, y_norm = products(xr, yr, centre + batch * d, rows, columns, d, C, BLOCK, BM, BK, SPLIT)
            far = tl.maximum(far, tl.max(tl.where(y_norm < INF, y_norm, 0.0), 0, keep_dims=True))
        else:
            r = differences(xr, yr, rows, columns, d, ABSOLUTE, C, BLOCK, BM)
        own = tl.zeros((BM,), C) + 1.0
        if PER == DATUM:
            hj = tl.load(bandwidth + at, mask=columns, other=1.0)
            own = (1.0 / (hj if ABSOLUTE else hj * hj)).to(C)
            r = r * own[None, :]
        q = r * scale[:, None]
        t, f, g = pair(q, nu, p, KERNEL)
        t = t + b.to(C)[None, :]
        if EXCLUDE:
            t = tl.where(j[None, :] == i[:, None] + exclude, -INF, t)
        if not FIXED:
            high = tl.maximum(top, tl.max(tl.where(t == t, t, -INF), 1))  # a NaN shows in the sums
            by = weight_of(top - high)
            top = high
            wide = by.to(tl.float64)
            total = total * wide
            squares = squares * (wide * wide)
            deltas = deltas * wide
            slopes = slopes * wide
            if VALUES != NONE:
                mean = mean * by[:, None]
        e = weight_of(t - top[:, None]) * u[None, :]
        w = e * f
        s = e * g
        if not COMPACT:  # no infinite factor of a weight 0
            w = tl.where(e == 0.0, 0.0, w)
            s = tl.where(e == 0.0, 0.0, s)
        total += tl.sum(w, 1).to(tl.float64)
        if SHARES:
            squares += tl.sum(w * w, 1).to(tl.float64)
        if DELTA:
            deltas += tl.sum(tl.where(s == 0.0, 0.0, s * q), 1).to(tl.float64)
        if VALUES != NONE:
            if VALUES == SLOPE:
                w = s * own[None, :]
            if DIRECT:  # differences, column by column
                for k in range(chunk * BV, min(chunk * BV + BV, d)):
                    step = tl.load(yr + k, mask=columns, other=0.0).to(C)
                    step = tl.where((step == INF) | (step == -INF), 0.0, step)
                    step = step[None, :] - coordinates(xr + k, rows, C)[:, None]
                    if ABSOLUTE and VALUES == SLOPE:
                        step = tl.where(step > 0.0, 1.0, tl.where(step < 0.0, -1.0, step))
                    mean += tl.where((cols == k)[None, :], tl.sum(w * step, 1)[:, None], 0.0)
            else:
                source = v if VALUES == GIVEN else y
                inside = columns[:, None] & (cols < dv)[None, :]
                part = tl.load(source + at[:, None] * dv + cols[None, :], mask=inside, other=0.0)
                if VALUES != GIVEN:
                    c = tl.load(centre + batch * d + cols, mask=cols < d, other=0.0)
                    part = tl.where(inside, part.to(tl.float64) - c[None, :], 0.0)
                    slopes += tl.sum(w, 1).to(tl.float64)
                part = tl.where((part == INF) | (part == -INF), 0.0, part)
                mean += matmul(w, part.to(C), PV)

    is_nan = total != total
    if FIXED:
        given = tl.load(shift + batch * n + i, mask=rows, other=0.0)
        away = (given == INF) | (given == -INF)
        factor = tl.where(away, 0.0, weight_of(tl.where(away, 0.0, top.to(tl.float64) - given)))
        result = tl.where(away, 0.0, total * factor)
        empty = away
        square_factor = factor * factor
    else:
        empty = (total <= 0.0) & (total == total)
        safe = tl.where((total > 0.0) & (total < INF), total, 1.0)
        factor = 1.0 / safe
        result = tl.where(empty, -INF, top.to(tl.float64) + log_normal(safe))
        square_factor = factor * factor
    result = tl.where(is_nan, float("nan"), result)
    out = batch * n + i
    first = rows & (i < tl.where(chunk == 0, n, 0))
    tl.store(log_sum + out, result, mask=first)
    if SQUARE:
        of_squares = tl.where(is_nan, float("nan"), tl.where(empty, 0.0, squares * square_factor))
        tl.store(square + out, of_squares, mask=first)
    if DELTA:
        tl.store(delta + out, tl.where(is_nan, float("nan"), tl.where(empty, 0.0, deltas * factor)), mask=first)
    if MARK:
        if PRODUCT:
            # as Bound of csrc/cpu/kde.cpp, with norms in float32
            length = 0.5 + 1.04 * divide(tl.minimum(BK, d).to(C), square_root(tl.zeros((1,), C) + d))
            reach = length * square_root(x_norm * far) + 0.75 * (x_norm + far)
            many = 1.0 if FIXED else tl.maximum(square_root(tl.maximum(squares * square_factor, 0.0)), 0.1)
            error = 6e-8 * many * (reach.to(tl.float64) * inverse)
            size = tl.abs(given) if FIXED else tl.abs(result)
            if not FIXED:
                error += 1.2e-7 * (top_bias - result)
            again = is_nan | (error > 4e-7 * size + (2e-5 if FIXED else 2e-6))
            if not FIXED:
                again = again & ((result > -INF) | (top_bias > -INF) | is_nan)
        elif FIXED:
            again = is_nan
        else:
            # as is_doubtful of csrc/cuda/kde.cuh
            error = 2e-7 * ((0.0 if COMPACT else top_bias - result) + 10.0)
            again = is_nan | (error > 4e-7 * tl.abs(result) + 2e-6)
            if COMPACT:
                again = again | (total < 0.3) & (total > 0.0)
                again = again & ((result > -INF) | is_nan)
            else:
                again = again & ((result > -INF) | (top_bias > -INF) | is_nan)
        tl.store(doubt + out, again.to(tl.int8), mask=first)
    if VALUES != NONE:
        wide = mean.to(tl.float64)
        if not DIRECT and VALUES != GIVEN:
            c = tl.load(centre + batch * d + cols, mask=cols < d, other=0.0)
            a = coordinates(xr[:, None] + cols[None, :], rows[:, None] & (cols < d)[None, :], tl.float64)
            wide = wide - slopes[:, None] * (a - c[None, :])
        if VALUES == SLOPE and PER != DATUM:
            factor = factor * inverse
        wide = tl.where(is_nan[:, None], float("nan"), tl.where(empty[:, None], 0.0, wide * factor[:, None]))
        place = values + out[:, None] * dv + cols[None, :]
        tl.store(place, wide.to(values.dtype.element_ty), mask=rows[:, None] & (cols < dv)[None, :])


def kde_sums(
    x: Tensor,
    data: Tensor,
    bandwidth: Tensor,
    bias: Tensor | None,
    values: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    kernel: int,
    nu: float,
    exclude: int,
    highest: bool,
    weighting: int,
    log_sum: Tensor,
    values_out: Tensor | None,
    square: Tensor | None,
    delta: Tensor | None,
) -> None:
    """The sums of common/kde_sums.h into ``log_sum``, ``values_out``, ``square`` and ``delta``.

    Tensors as the native binding's, contiguous and batched: x (b, n, d), data (b, m, d), bandwidth (b, 1, 1), (b, n, 1)
    or (b, 1, m), bias and weight (b, m), shift (b, n), values (b, m, dv); float64 but for x, data and values.
    ``kernel`` is an index of `kde_pairs.KERNELS`.
    """
    (batch, n, d), m = x.shape, data.shape[1]
    if batch == 0 or n == 0:
        return
    if batch > MOST_BATCHES:
        tensors = (x, data, bandwidth, bias, values, weight, shift, log_sum, values_out, square, delta)
        for at in range(0, batch, MOST_BATCHES):
            cut = [None if t is None else t[at : at + MOST_BATCHES] for t in tensors]
            kde_sums(*cut[:7], kernel, nu, exclude, highest, weighting, *cut[7:])
        return
    gaussian, laplace = kernel == 0, kernel == 1
    kind = NONE if weighting == 0 else SLOPE if weighting == 2 else GIVEN if values is not None else DISPLACEMENT
    relative = kind.value in (DISPLACEMENT.value, SLOPE.value)
    direct = relative and (d <= 8 or (laplace and kind is SLOPE))
    product = gaussian and d >= 16 and x.dtype is torch.float32 and bandwidth.shape[2] == 1
    dv = values_out.shape[2] if values_out is not None else 1
    if weight is not None and shift is None:  # then they are part of the exponents
        bias, weight = torch.log(weight) if bias is None else bias + torch.log(weight), None
    centre = x.new_zeros(1, dtype=torch.float64)
    if m and (product or (relative and not direct)):
        mean = data.double().mean(1)
        centre = torch.nan_to_num(mean.float().double() if product else mean, posinf=0.0, neginf=0.0, nan=0.0)
    marks = highest and x.dtype is torch.float32
    doubt = torch.empty((batch, n) if marks else (1,), dtype=torch.int8, device=x.device)
    along = DATUM if bandwidth.shape[2] != 1 else QUERY if bandwidth.shape[1] != 1 else ONE
    nothing = log_sum
    none_if = [nothing if t is None else t for t in (bias, weight, shift, values_out, square, delta)]
    nu_at = torch.full((1,), nu, dtype=torch.float64, device=x.device)
    least = -(2**63)

    def launch(wide: bool, again: bool) -> None:
        products = product and not again
        chosen = configuration("kde_products" if products else "kde", torch.float64 if wide else torch.float32)
        width = min(64, max(16, triton.next_power_of_2(dv)))
        grid = (triton.cdiv(n, chosen.block), triton.cdiv(dv, width), batch)
        kde_kernel[grid](
            x, data, x if values is None else values, centre, bandwidth, none_if[0], none_if[1], none_if[2], nu_at,
            log_sum, none_if[3], none_if[4], none_if[5], doubt, n, m, d, dv, 0 if exclude == least else exclude,
            KERNEL=kernel, WIDE=wide, VALUES=kind.value, PER=along.value, BIAS=bias is not None,
            WEIGHT=weight is not None, FIXED=shift is not None, EXCLUDE=exclude != least, SQUARE=square is not None,
            DELTA=delta is not None, PRODUCT=products, DIRECT=direct, MARK=marks and not again, AGAIN=again,
            BLOCK=chosen.block, BM=chosen.columns, BK=16, BV=width,
            SPLIT=dot_precision(wide), **chosen.options,
        )  # fmt: skip

    with launching(x):
        launch(x.dtype is torch.float64, False)
        if marks:
            launch(True, True)
