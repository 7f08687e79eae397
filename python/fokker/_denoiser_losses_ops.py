"""The registered ops behind the losses of `fokker.denoiser`: sums over each sample of one read of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._op import Kernel, Op, native_kernels, triton_kernel
from ._sde_ops import RESULTS, given, partial
from ._sde_step import affine_step, gram
from .reference import denoiser_losses as reference
from .reference.sde import arithmetic

VECTORS = 4


def _per_sample(c: Tensor, like: Tensor) -> Tensor:
    return c.reshape(-1, *(1,) * (like.dim() - 1))


# ---- linear forms ----------------------------------------------------------------------------------------------------
def _forms_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return reference.forms(given(args[:VECTORS]), args[VECTORS])


def _forms_fake(*args: Any) -> tuple[Tensor, ...]:
    x, rows = args[0], args[VECTORS].shape[1]
    return tuple(torch.empty(x.shape[0] if r < rows else 0, dtype=torch.float64, device=x.device) for r in range(3))


def _forms_kernel(module: Any) -> Kernel:
    def run(*args: Any) -> tuple[Tensor, ...]:
        vectors, coefficients = given(args[:VECTORS]), args[VECTORS].contiguous()
        x, rows = vectors[0], coefficients.shape[1]
        make = torch.empty if x.numel() else torch.zeros
        sums = make((x.shape[0], 1, rows), dtype=torch.float64, device=x.device)
        module.loss_forms(vectors, coefficients, sums, partial(module, x, rows))
        found = [sums[:, 0, r].clone() for r in range(rows)]
        return (*found, *(sums.new_empty(0) for _ in range(3 - rows)))

    run.module = module  # type: ignore[attr-defined]
    return run


def _combinations(vectors: list[Tensor], wanted: list[int], used: list[int], table: Tensor) -> list[Tensor]:
    """For each of ``wanted`` the sum over ``used`` of table (B, wanted, used) times vector, in that vector's dtype."""
    first = vectors[used[0]]
    wide = arithmetic(first.dtype)
    table = (table[:, 0] if len(wanted) == 1 else table).to(wide)
    out: Any = None
    if not torch.is_grad_enabled() and any(vectors[k].dtype is not first.dtype for k in wanted):
        out = [torch.empty_like(vectors[k]) for k in wanted]
        out = out if len(out) > 1 else out[0]
    found = affine_step(first, [vectors[j] for j in used[1:]], table, results=len(wanted), out=out)
    made = found if isinstance(found, (tuple, list)) else [found]
    return [g.to(vectors[k].dtype) for g, k in zip(made, wanted, strict=True)]


def _picked(square: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Rows and columns of (B, K, K), as views where they are neighbours."""
    for dim, at in ((1, rows), (2, columns)):
        if at == list(range(at[0], at[0] + len(at))):
            square = square.narrow(dim, at[0], len(at))
        else:
            square = torch.stack([square.select(dim, i) for i in at], dim)
    return square


def _forms_backward(
    needs: Any, saved: Any, extra: Any, to_square: Tensor | None, to_product: Tensor | None, to_absolute: Tensor | None
) -> tuple[Tensor | None, ...]:
    vectors, coefficients, (pattern,) = given(saved[:VECTORS]), saved[VECTORS], extra
    count, rows = len(vectors), coefficients.shape[1]
    wanted = [k for k in range(count) if needs[k]]
    grads: list[Tensor | None] = [None] * (VECTORS + 1)
    if rows < 2:
        to_product = None
    # the gradient in vector k is sum_j square_kj v_j: d<p, p> = 2 p dp, d<p, q> = p dq + q dp
    square: Tensor | None = None
    pairs: set[tuple[int, int]] = set()  # of (k, j) that may differ from zero
    parts = ((to_square, 0), (to_product, 1))
    for grad, row in parts:
        if grad is None:
            continue
        outer = coefficients[:, 0, :, None] * coefficients[:, row, None, :]
        term = grad.reshape(-1, 1, 1) * (outer + outer.mT)
        square = term if square is None else square + term
        in_p, in_q = ([k for k in range(count) if pattern >> (r * count + k) & 1] for r in (0, row))
        pairs |= {pair for k in in_p for j in in_q for pair in ((k, j), (j, k))}
    if square is not None:
        for at in range(0, len(wanted), RESULTS):
            these = wanted[at : at + RESULTS]
            used = sorted({j for k, j in pairs if k in these}, key=lambda j: (-torch.finfo(vectors[j].dtype).bits, j))
            if not used:
                made = [torch.zeros_like(vectors[k]) for k in these]
            else:  # the widest first: its dtype is that of the arithmetic
                made = _combinations(vectors, these, used, _picked(square, these, used))
            for k, found in zip(these, made, strict=True):
                grads[k] = found
    signs = None
    if to_absolute is not None and rows > 2:
        form = sum(_per_sample(coefficients[:, 2, k], v) * v.double() for k, v in enumerate(vectors))
        signs = torch.sign(form) * _per_sample(to_absolute, form)
        for k in wanted:
            slope = (_per_sample(coefficients[:, 2, k], signs) * signs).to(vectors[k].dtype)
            grads[k] = slope if grads[k] is None else grads[k] + slope
    if needs[VECTORS]:
        grads[VECTORS] = _to_coefficients(vectors, coefficients, to_square, to_product, signs)
    return tuple(grads)


def _to_coefficients(
    vectors: list[Tensor], coefficients: Tensor, to_square: Tensor | None, to_product: Tensor | None,
    signs: Tensor | None
) -> Tensor:  # fmt: skip
    """The gradient in the coefficients: inner products of the vectors with the forms."""
    batch, rows = vectors[0].shape[0], coefficients.shape[1]
    found = [coefficients.new_zeros(batch, len(vectors)) for _ in range(rows)]
    if to_square is not None or to_product is not None:
        with_forms = coefficients[:, :2] @ gram(vectors)  # <form r, vector k>
    if to_square is not None:
        found[0] = 2.0 * to_square[:, None] * with_forms[:, 0]
    if to_product is not None:
        found[0] = found[0] + to_product[:, None] * with_forms[:, 1]
        found[1] = to_product[:, None] * with_forms[:, 0]
    if signs is not None:
        found[2] = torch.stack([(signs * v.double()).reshape(batch, -1).sum(1) for v in vectors], 1)
    grad = torch.stack(found, 1)
    return grad.sum(0, keepdim=True) if coefficients.shape[0] == 1 else grad


#: vectors, coefficients (B or 1, R, K) and which of them may differ from zero (bit r K + k) -> as `reference.forms`
forms = Op(
    "loss_forms(Tensor v0, Tensor? v1, Tensor? v2, Tensor? v3, Tensor coefficients, int pattern) -> (Tensor, Tensor, "
    "Tensor)",
    tensors=VECTORS + 1,
    reference=_forms_reference,
    fake=_forms_fake,
    kernels={**native_kernels(_forms_kernel), "triton": triton_kernel(_forms_kernel, "losses")},
    backward=_forms_backward,
    partial_grads=True,
)


# ---- the multiplicative residual -------------------------------------------------------------------------------------
def _lognormal_kernel(module: Any) -> Kernel:
    def run(s: Tensor, x: Tensor, data: Tensor, coefficients: Tensor, multiplied: bool) -> Tensor:
        make = torch.empty if s.numel() else torch.zeros
        sums = make((s.shape[0], 1, 1), dtype=torch.float64, device=s.device)
        table = torch.nn.functional.pad(coefficients, (0, 1))[:, None]
        module.loss_lognormal([s, x, data], table, multiplied, sums, None, partial(module, s, 1))
        return sums.reshape(-1)

    return run


def _slope_reference(s: Tensor, x: Tensor, data: Tensor, coefficients: Tensor, multiplied: bool) -> Tensor:
    return _slopes(s, x, data, coefficients[:, :2], coefficients[:, 2], multiplied, (True, False, False, False))[0]


def _slope_kernel(module: Any) -> Kernel:
    def run(s: Tensor, x: Tensor, data: Tensor, coefficients: Tensor, multiplied: bool) -> Tensor:
        out = torch.empty_like(s)
        module.loss_lognormal([s, x, data], coefficients[:, None].contiguous(), multiplied, None, out, None)
        return out

    return run


def _slopes(
    s: Tensor, x: Tensor, data: Tensor, coefficients: Tensor, grad: Tensor, multiplied: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of `lognormal` in s, x, data and the coefficients, composed of torch ops."""
    a, c, g = (_per_sample(t, s) for t in (*coefficients.unbind(1), grad))
    wide, at, from_ = s.double(), x.double(), data.double()
    factor = at if multiplied else torch.ones_like(at)
    twice = 2.0 * g * (a * factor * wide + (at / from_).log() + c)
    to_coefficients = None
    if needs[3]:
        batch = s.shape[0]
        both = [(twice * factor * wide).reshape(batch, -1).sum(1), twice.reshape(batch, -1).sum(1)]
        to_coefficients = torch.stack(both, 1)
        if coefficients.shape[0] == 1:
            to_coefficients = to_coefficients.sum(0, keepdim=True)
    return (
        (twice * a * factor).to(s.dtype) if needs[0] else None,
        (twice * (1.0 / at + (a * wide if multiplied else 0.0))).to(x.dtype) if needs[1] else None,
        (-twice / from_).to(data.dtype) if needs[2] else None,
        to_coefficients,
    )


#: the gradient in s alone: coefficients (B or 1, 3) with what the sums are weighted by as the last column
_lognormal_slope = Op(
    "loss_lognormal_slope(Tensor s, Tensor x, Tensor data, Tensor coefficients, bool multiplied) -> Tensor",
    tensors=4,
    reference=_slope_reference,
    fake=lambda s, x, data, coefficients, multiplied: torch.empty_like(s),
    kernels={**native_kernels(_slope_kernel), "triton": triton_kernel(_slope_kernel, "losses")},
)


def _lognormal_backward(needs: Any, saved: Any, extra: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    s, x, data, coefficients = saved
    if torch.is_grad_enabled() or any(needs[1:]):
        return _slopes(s, x, data, coefficients, grad, extra[0], needs)
    table = torch.cat([coefficients.expand(len(grad), 2), grad[:, None]], 1)
    return _lognormal_slope(s, x, data, table, extra[0]), None, None, None


#: s, x, data, coefficients (B or 1, 2) -> (B,) as `reference.lognormal`
lognormal = Op(
    "loss_lognormal(Tensor s, Tensor x, Tensor data, Tensor coefficients, bool multiplied) -> Tensor",
    tensors=4,
    reference=reference.lognormal,
    fake=lambda s, x, data, coefficients, multiplied: s.new_empty(s.shape[0], dtype=torch.float64),
    kernels={**native_kernels(_lognormal_kernel), "triton": triton_kernel(_lognormal_kernel, "losses")},
    backward=_lognormal_backward,
    partial_grads=True,
)
