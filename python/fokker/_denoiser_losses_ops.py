"""The registered ops behind the losses of `fokker.denoiser`: sums over each sample of one read of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._op import Kernel, Op, native_kernels
from ._sde_ops import RESULTS, given, partial
from ._sde_step import affine_step, gram
from .reference import denoiser_losses as reference
from .reference.sde import arithmetic

VECTORS = 4


def _per_sample(c: Tensor, like: Tensor) -> Tensor:
    return c.reshape(-1, *(1,) * (like.dim() - 1))


# ---- linear forms ----------------------------------------------------------------------------------------------------
def _forms_reference(*args: Any) -> tuple[Tensor, Tensor]:
    return reference.forms(given(args[:VECTORS]), args[VECTORS])


def _forms_fake(*args: Any) -> tuple[Tensor, Tensor]:
    x, rows = args[0], args[VECTORS].shape[1]
    products = torch.empty((x.shape[0], min(rows, 2)), dtype=torch.float64, device=x.device)
    return products, products.new_empty(x.shape[0] if rows > 2 else 0)


def _forms_kernel(module: Any) -> Kernel:
    def run(*args: Any) -> tuple[Tensor, Tensor]:
        vectors, coefficients = given(args[:VECTORS]), args[VECTORS].contiguous()
        x, rows = vectors[0], coefficients.shape[1]
        make = torch.empty if x.numel() else torch.zeros
        sums = make((x.shape[0], 1, rows), dtype=torch.float64, device=x.device)
        module.loss_forms(vectors, coefficients, sums, partial(module, x, rows))
        if rows <= 2:
            return sums[:, 0], sums.new_empty(0)
        return sums[:, 0, :2].contiguous(), sums[:, 0, 2].contiguous()

    return run


def _combinations(vectors: list[Tensor], wanted: list[int], parts: list[dict[int, Tensor]]) -> list[Tensor]:
    """For each of ``wanted`` the sum of coefficient times vector over its ``parts``, in the dtype of that vector."""
    used = sorted({j for part in parts for j in part})
    if not used:
        return [torch.zeros_like(vectors[k]) for k in wanted]
    # the widest first: its dtype is that of the arithmetic
    used.sort(key=lambda j: -torch.finfo(vectors[j].dtype).bits)
    first = vectors[used[0]]
    some = next(c for part in parts for c in part.values())
    none = torch.zeros_like(some)
    rows = [torch.stack([part.get(j, none) for j in used], -1) for part in parts]
    wide = arithmetic(first.dtype)
    table = (rows[0] if len(rows) == 1 else torch.stack(rows, -2)).to(wide)
    out: Any = None
    if not torch.is_grad_enabled() and any(vectors[k].dtype is not first.dtype for k in wanted):
        out = [torch.empty_like(vectors[k]) for k in wanted]
        out = out if len(out) > 1 else out[0]
    found = affine_step(first, [vectors[j] for j in used[1:]], table, results=len(wanted), out=out)
    made = found if isinstance(found, (tuple, list)) else [found]
    return [g.to(vectors[k].dtype) for g, k in zip(made, wanted, strict=True)]


def _forms_backward(
    needs: Any, saved: Any, extra: Any, to_products: Tensor | None, to_absolute: Tensor | None
) -> tuple[Tensor | None, ...]:
    vectors, coefficients, (pattern,) = given(saved[:VECTORS]), saved[VECTORS], extra
    count, rows = len(vectors), coefficients.shape[1]
    wanted = [k for k in range(count) if needs[k]]
    grads: list[Tensor | None] = [None] * (VECTORS + 1)

    def there(r: int, k: int) -> bool:
        return r < rows and bool(pattern >> (r * count + k) & 1)

    if to_products is not None:
        g = [2.0 * to_products[:, 0], *to_products[:, 1:].unbind(1)]
        for at in range(0, len(wanted), RESULTS):
            these, parts = wanted[at : at + RESULTS], []
            for k in these:
                part: dict[int, Tensor] = {}
                # d<p, p> = 2 p dp, d<p, q> = p dq + q dp
                for weight, r, s in ((0, 0, 0), (1, 0, 1), (1, 1, 0)):
                    if weight >= len(g):
                        continue
                    for j in range(count):
                        if there(r, k) and there(s, j):
                            term = g[weight] * (coefficients[:, r, k] * coefficients[:, s, j])
                            part[j] = part[j] + term if j in part else term
                parts.append(part)
            for k, found in zip(these, _combinations(vectors, these, parts), strict=True):
                grads[k] = found
    signs = None
    if to_absolute is not None and to_absolute.numel():
        wide = [v.double() for v in vectors]
        form = sum(_per_sample(coefficients[:, 2, k], v) * v for k, v in enumerate(wide))
        signs = torch.sign(form) * _per_sample(to_absolute, form)
        for k in wanted:
            found = (_per_sample(coefficients[:, 2, k], signs) * signs).to(vectors[k].dtype)
            grads[k] = found if grads[k] is None else grads[k] + found
    if needs[VECTORS]:
        grads[VECTORS] = _to_coefficients(vectors, coefficients, to_products, signs)
    return tuple(grads)


def _to_coefficients(
    vectors: list[Tensor], coefficients: Tensor, to_products: Tensor | None, signs: Tensor | None
) -> Tensor:
    """The gradient in the coefficients: inner products of the vectors with the forms."""
    batch, rows = vectors[0].shape[0], coefficients.shape[1]
    found = [coefficients.new_zeros(batch, len(vectors)) for _ in range(rows)]
    if to_products is not None:
        with_forms = coefficients[:, :2] @ gram(vectors)  # <form r, vector k>
        found[0] = 2.0 * to_products[:, :1] * with_forms[:, 0]
        if rows > 1:
            found[0] = found[0] + to_products[:, 1:] * with_forms[:, 1]
            found[1] = to_products[:, 1:] * with_forms[:, 0]
    if signs is not None:
        found[2] = torch.stack([(signs * v.double()).reshape(batch, -1).sum(1) for v in vectors], 1)
    grad = torch.stack(found, 1)
    return grad.sum(0, keepdim=True) if coefficients.shape[0] == 1 else grad


#: vectors, coefficients (B or 1, R, K) and which of them may differ from zero (bit r K + k) -> as `reference.forms`
forms = Op(
    "loss_forms(Tensor v0, Tensor? v1, Tensor? v2, Tensor? v3, Tensor coefficients, int pattern) -> (Tensor, Tensor)",
    tensors=VECTORS + 1,
    reference=_forms_reference,
    fake=_forms_fake,
    kernels=native_kernels(_forms_kernel),
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
    kernels=native_kernels(_slope_kernel),
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
    kernels=native_kernels(_lognormal_kernel),
    backward=_lognormal_backward,
    partial_grads=True,
)
