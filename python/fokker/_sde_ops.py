"""The registered ops behind `fokker.sde.affine_step` and `gram`: one pass over the state, its terms and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._op import Kernel, Op, native_kernels
from .reference import sde as reference

TERMS = 8
RESULTS = 3
_U64 = 2**64 - 1
_SLOTS = ", ".join(f"Tensor? m{k}" for k in range(1, TERMS + 1))
_COUNTERS = "Tensor? seed_tensor, Tensor? step_tensor, Tensor? sample_ids"
_PLACE = "SymInt seed, SymInt step, int stream, SymInt first_id, SymInt element_offset"
#: the arguments after the tensors: (row, noisy, seed, step, stream, first id, element offset, exponential, clip)
_SETTINGS = f"SymInt row, bool noisy, {_PLACE}, bool exponential, float? clip"
_HEAD = 2 + TERMS  # x, coefficients, terms
_TENSORS = _HEAD + 4  # ... row, seed, step, ids


def _sums(x: Tensor, rows: int, columns: int) -> Tensor:
    """Where sums over samples go; over no elements they are 0, and no kernel runs."""
    make = torch.empty if x.numel() else torch.zeros
    return make((x.shape[0], rows, columns), dtype=torch.float64, device=x.device)


def partial(module: Any, x: Tensor, count: int) -> Tensor | None:
    """The workspace of a module that adds up sums tile by tile: ``count`` sums a tile."""
    tile = module.sde_tile
    if not tile:
        return None
    batch = x.shape[0]
    tiles = x.numel() // max(batch, 1) // tile + 2
    return torch.empty(batch * tiles * count, dtype=torch.float64, device=x.device)


def given(slots: Sequence[Tensor | None]) -> list[Tensor]:
    """The tensors before the first empty slot."""
    return [t for t in slots if t is not None]


def _place(like: Tensor, seed: Any, step: Any, ids: Any, noisy: bool, place: Sequence[Any]) -> dict[str, Any]:
    """The noise arguments of the reference."""
    if not noisy:
        return {}
    seed_value, step_value, stream, first, offset = place
    if ids is None:
        ids = torch.arange(first, first + like.shape[0], device=like.device)
    return {
        "seed": seed_value if seed is None else seed,
        "step": step_value if step is None else step,
        "stream": stream,
        "sample_ids": ids,
        "element_offset": offset,
    }


def _settings(args: Sequence[Any]) -> dict[str, Any]:
    """The reference's keywords from the arguments after the terms."""
    row, seed, step, ids, row_value, noisy = args[_HEAD : _HEAD + 6]
    *place, exponential, clip = args[_HEAD + 6 : _HEAD + 13]
    if row is None and row_value >= 0:
        row = row_value
    return {"row": row, "exponential": exponential, "clip": clip, **_place(args[0], seed, step, ids, noisy, place)}


# ---- the affine step ------------------------------------------------------------------------------------------------
class Affine:
    """The op of a step with so many results, with or without inner products; results first, then those."""

    def __init__(self, results: int, dots: bool) -> None:
        self.results, self.dots = results, dots
        outputs = results + dots
        name = f"sde_affine_{results}{'_dots' if dots else ''}"
        found = "Tensor" if outputs == 1 else f"({', '.join(['Tensor'] * outputs)})"
        self.op = Op(
            f"{name}(Tensor x, Tensor coefficients, {_SLOTS}, Tensor? row_tensor, {_COUNTERS}, {_SETTINGS}) -> {found}",
            tensors=_TENSORS,
            reference=self._reference,
            fake=self._fake,
            kernels={**native_kernels(self._kernel), "triton": self._triton()},
            backward=self._backward,
            partial_grads=True,
        )

    def _one(self, found: tuple[Tensor, ...]) -> Any:
        return found if len(found) > 1 else found[0]

    def _reference(self, *args: Any) -> Any:
        found = reference.affine_step(
            args[0], given(args[2:_HEAD]), args[1], dots=self.dots, results=self.results, **_settings(args)
        )
        return self._one(found)

    def _joined(self, args: Sequence[Any]) -> int:
        return 1 + len(given(args[2:_HEAD])) + bool(args[_HEAD + 5])

    def _fake(self, *args: Any) -> Any:
        x = args[0]
        found = [torch.empty_like(x) for _ in range(self.results)]
        if self.dots:
            j = self._joined(args)
            found.append(_sums(x, j, j))
        return self._one(tuple(found))

    def _kernel(self, module: Any) -> Kernel:
        results, dots = self.results, self.dots
        single = results == 1 and not dots

        def run(*args: Any, out: Sequence[Tensor] | None = None) -> Any:
            x = args[0]
            row, seed, step, ids, row_value, noisy, seed_value, step_value, stream, first, offset, exponential, clip = (
                args[_HEAD:]
            )
            terms = [t for t in args[2:_HEAD] if t is not None]
            ys = [torch.empty_like(x) for _ in range(results)] if out is None else out
            products = workspace = None
            if dots:
                j = 1 + len(terms) + noisy
                products, workspace = _sums(x, j, j), partial(module, x, j * j)
            module.sde_affine(
                x, terms, args[1], row_value, row, noisy, seed_value & _U64, seed, step_value, step, stream, ids, first,
                offset, exponential, clip, ys, products, workspace,
            )  # fmt: skip
            if single:
                return ys[0]
            return (*ys, products) if dots else tuple(ys)

        run.writes_out = True  # type: ignore[attr-defined]
        run.module = module  # type: ignore[attr-defined]
        return run

    def _triton(self) -> Kernel:
        def run(*args: Any, out: Sequence[Tensor] | None = None) -> Any:
            from .triton_kernels import sde

            return self._one(sde.affine_step(self.results, self.dots, *args, out=out))

        run.writes_out = True  # type: ignore[attr-defined]
        return run

    def _backward(self, needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, coefficients = saved[0], saved[1]
        to_dots = grads[self.results] if self.dots else None
        grads = grads[: self.results]
        count = len(given(saved[2:_HEAD]))
        if torch.is_grad_enabled() or to_dots is not None:  # to be differentiated again: composed of torch ops
            to_x, to_m, to_c = reference.affine_step_vjp(
                x, given(saved[2:_HEAD]), coefficients, grads, to_dots, **_settings((*saved, *extra))
            )
        else:
            wanted = sum(1 << k for k in range(1 + count) if needs[k + (k > 0)]) | (bool(needs[1]) << (1 + TERMS))
            full = [torch.zeros_like(x) if g is None else g for g in grads]
            full += [None] * (RESULTS - len(full))
            to_x, *to_m, to_c = affine_vjp(*saved, *full, *extra, self.results, wanted)
        to_table = None
        if needs[1]:
            row, row_value = saved[_HEAD], extra[0]
            to_table = _to_table(to_c, coefficients, row, row_value, self.results)
        slots = [to_m[k] if k < count and needs[2 + k] else None for k in range(TERMS)]
        return (to_x if needs[0] else None, to_table, *slots, None, None, None, None)


def _to_table(grad: Tensor, table: Tensor, row: Tensor | None, row_value: int, results: int) -> Tensor:
    """The gradient of a table of coefficients from that of each sample's rows, (B, R, C)."""
    stepped = row is not None or row_value >= 0
    size = table.shape[1:] if stepped else table.shape
    rows = 1
    for n in size[:-1]:
        rows *= n
    if rows == results:  # one set for all samples
        grad = grad.sum(0, keepdim=True)
    grad = grad.reshape(size).to(table.dtype)
    if row is not None:
        at = row.reshape(1).clamp(0, table.shape[0] - 1)
        return torch.zeros_like(table).index_add(0, at, grad[None])
    if stepped:
        return torch.select_scatter(torch.zeros_like(table), grad, 0, row_value)
    return grad


# ---- its vector-Jacobian product -------------------------------------------------------------------------------------
_GRADS = _TENSORS + RESULTS


def _vjp_reference(*args: Any) -> tuple[Tensor, ...]:
    results, wanted = args[-2:]
    terms = given(args[2:_HEAD])
    settings = _settings((*args[:_TENSORS], *args[_GRADS:]))
    grads = args[_TENSORS : _TENSORS + results]
    to_x, to_m, to_c = reference.affine_step_vjp(args[0], terms, args[1], grads, **settings)
    found = [to_x, *to_m] + [None] * (TERMS - len(to_m)) + [to_c]
    none = args[0].new_empty(0)
    return tuple(none.clone() if t is None or not wanted >> k & 1 else t for k, t in enumerate(found))


def _vjp_fake(*args: Any) -> tuple[Tensor, ...]:
    x, coefficients = args[0], args[1]
    results, wanted = args[-2:]
    like = [x, *args[2:_HEAD]]
    found = [
        x.new_empty(0) if t is None or not wanted >> k & 1 else torch.empty_like(x, dtype=t.dtype)
        for k, t in enumerate(like)
    ]
    if wanted >> (1 + TERMS) & 1:
        return (*found, _sums(x, results, coefficients.shape[-1]))
    return (*found, x.new_empty(0, dtype=torch.float64))


def _vjp_kernel(module: Any) -> Kernel:
    def run(*args: Any) -> tuple[Tensor, ...]:
        results, wanted = args[-2:]
        row, seed, step, ids = args[_HEAD:_TENSORS]
        row_value, noisy, seed_value, step_value, stream, first, offset, exponential, clip = args[_GRADS:-2]
        found = _vjp_fake(*args)
        module.sde_affine_vjp(
            args[0], given(args[2:_HEAD]), args[1], row_value, row, noisy, seed_value & _U64, seed, step_value, step,
            stream, ids, first, offset, exponential, clip, [g for g in args[_TENSORS : _TENSORS + results]],
            [found[k] if wanted >> k & 1 else None for k in range(1 + TERMS)],
            found[-1] if wanted >> (1 + TERMS) & 1 else None,
            partial(module, args[0], results * args[1].shape[-1]) if wanted >> (1 + TERMS) & 1 else None,
        )  # fmt: skip
        return found

    return run


def _vjp_triton(*args: Any) -> tuple[Tensor, ...]:
    from .triton_kernels import sde_vjp

    return sde_vjp.affine_vjp(args, _vjp_fake(*args))


#: gradients in x and each term (empty where bit k of ``wanted`` is not set), and (B, R, C) in the coefficients
affine_vjp = Op(
    f"sde_affine_vjp(Tensor x, Tensor coefficients, {_SLOTS}, Tensor? row_tensor, {_COUNTERS}, Tensor grad1, "
    f"Tensor? grad2, Tensor? grad3, {_SETTINGS}, int results, int wanted) -> ({', '.join(['Tensor'] * (2 + TERMS))})",
    tensors=_GRADS,
    reference=_vjp_reference,
    fake=_vjp_fake,
    kernels={**native_kernels(_vjp_kernel), "triton": _vjp_triton},
)

#: (results, with inner products) -> the op of such a step
AFFINE = {(r, d): Affine(r, d).op for r in range(1, RESULTS + 1) for d in (False, True)}


# ---- inner products alone --------------------------------------------------------------------------------------------
def _gram_arguments(args: Sequence[Any]) -> tuple[list[Tensor], dict[str, Any]]:
    vectors = given(args[: 1 + TERMS])
    seed, step, ids, noisy, *place = args[1 + TERMS :]
    return vectors, _place(args[0], seed, step, ids, noisy, place)


def _gram_reference(*args: Any) -> Tensor:
    vectors, settings = _gram_arguments(args)
    return reference.gram(vectors, **settings)


def _gram_fake(*args: Any) -> Tensor:
    j = len(given(args[: 1 + TERMS])) + bool(args[1 + TERMS + 3])
    return _sums(args[0], j, j)


def _gram_kernel(module: Any) -> Kernel:
    def run(*args: Any) -> Tensor:
        seed, step, ids, noisy, seed_value, step_value, stream, first, offset = args[1 + TERMS :]
        out = _gram_fake(*args)
        module.sde_gram(
            given(args[: 1 + TERMS]), noisy, seed_value & _U64, seed, step_value, step, stream, ids, first, offset, out,
            partial(module, args[0], out.shape[1] ** 2),
        )  # fmt: skip
        return out

    return run


def _gram_triton(*args: Any) -> Tensor:
    from .triton_kernels import sde

    seed, step, ids, noisy, *place = args[1 + TERMS :]
    return sde.gram(given(args[: 1 + TERMS]), noisy, seed, step, ids, *place)


def _gram_backward(needs: Any, saved: Any, extra: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    # d/dv_i = sum_j (D + D^T)_ij v_j: affine steps of the first vector and the others, three results a pass
    vectors = given(saved[: 1 + TERMS])
    slots: list[Tensor | None] = [None] * len(saved)
    if grad is None:
        return tuple(slots)
    x = vectors[0]
    both = (grad + grad.mT).to(reference.arithmetic(x.dtype))
    asked = [i for i in range(len(vectors)) if needs[i]]
    terms = [*vectors[1:], *[None] * (1 + TERMS - len(vectors))]
    for at in range(0, len(asked), RESULTS):
        these = asked[at : at + RESULTS]
        table = both[:, these] if len(these) > 1 else both[:, these[0]]
        found = AFFINE[len(these), False](x, table, *terms, None, *saved[1 + TERMS :], -1, *extra, False, None)
        for i, g in zip(these, found if len(these) > 1 else (found,), strict=True):
            slots[i] = g.to(vectors[i].dtype)
    return tuple(slots)


#: (B, J, J) float64
gram = Op(
    f"sde_gram(Tensor v0, {_SLOTS.replace('? m', '? v')}, {_COUNTERS}, bool noisy, {_PLACE}) -> Tensor",
    tensors=1 + TERMS + 3,
    reference=_gram_reference,
    fake=_gram_fake,
    kernels={**native_kernels(_gram_kernel), "triton": _gram_triton},
    backward=_gram_backward,
    partial_grads=True,
)
