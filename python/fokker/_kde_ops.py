"""The registered ops of density sums: log-sums with their moments, and the transposed sums of the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _kde_tiles
from ._backend import BackendError
from ._op import Kernel, Op, native_kernels
from .reference import kde as reference
from .reference.kde import DELTA, NOTHING, SLOPE, SQUARE, VALUES

__all__ = ["DELTA", "NOTHING", "SLOPE", "SQUARE", "VALUES", "pulled", "sums"]

_SETTINGS = "int kernel, float nu, int exclude, int outputs, bool highest"
_KERNELS = reference.KERNELS


class _Triton:
    """The Triton kernels in the place of a compiled module."""

    @staticmethod
    def kde_sums(*args: Any) -> None:
        """The binding's function of that name; the eighth argument is the kernel."""
        from .triton_kernels import kde
        from .triton_kernels.kde_pairs import KERNELS

        if args[7] >= len(KERNELS):
            missing = f"no Triton kernel for kernel={_KERNELS[args[7]]!r}"
            raise BackendError(f"density sums have {missing} (they have: {', '.join(KERNELS)})")
        kde.kde_sums(*args)


# ---- log-sums -------------------------------------------------------------------------------------------------------
def _fake_sums(
    x: Tensor,
    y: Tensor,
    bandwidth: Tensor,
    bias: Tensor | None,
    values: Tensor | None,
    kernel: int,
    nu: float,
    exclude: int,
    outputs: int,
    highest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, n, d = x.shape
    wide = torch.float64
    width = 0
    if outputs & (VALUES | SLOPE):
        width = values.shape[-1] if values is not None and outputs & VALUES else d
    return (
        x.new_empty(b, n, dtype=wide),
        x.new_empty(b, n, width),
        x.new_empty(b, n if outputs & SQUARE else 0, dtype=wide),
        x.new_empty(b, n if outputs & DELTA else 0, dtype=wide),
    )


def _sums_kernel(module: Any) -> Kernel:
    def run(
        x: Tensor,
        y: Tensor,
        bandwidth: Tensor,
        bias: Tensor | None,
        values: Tensor | None,
        kernel: int,
        nu: float,
        exclude: int,
        outputs: int,
        highest: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = _fake_sums(x, y, bandwidth, bias, values, kernel, nu, exclude, outputs, highest)
        x, y, bandwidth = x.contiguous(), y.contiguous(), bandwidth.contiguous()
        bias = None if bias is None else bias.contiguous()
        values = values.contiguous() if values is not None and outputs & VALUES else None
        mode = outputs & (VALUES | SLOPE)
        module.kde_sums(
            x, y, bandwidth, bias, values, None, None, kernel, nu, exclude, highest, mode, out[0],
            out[1] if mode else None, out[2] if outputs & SQUARE else None, out[3] if outputs & DELTA else None,
        )  # fmt: skip
        return out

    return run


def _sums_reference(
    x: Tensor,
    y: Tensor,
    bandwidth: Tensor,
    bias: Tensor | None,
    values: Tensor | None,
    kernel: int,
    nu: float,
    exclude: int,
    outputs: int,
    highest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.sums(x, y, bandwidth, bias, values, _KERNELS[kernel], nu, exclude, outputs)


def _sums_backward(needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, bandwidth, bias, values, _, mean, _, spread = saved
    kernel, nu, exclude, outputs, highest = extra
    to_log_sum, others = grads[0], grads[1:]
    if any(g is not None for g in others):
        full = _fill(grads, saved[5:])
        return _masked(needs, sums_vjp(x, y, bandwidth, bias, values, *full, *extra))
    if to_log_sum is None:
        return (None,) * 5
    # only log_sum was used: its gradient in the queries is the slope, in the data the transposed sum
    per_query_bandwidth = bandwidth.shape[2] == 1
    to_x = to_y = to_h = to_bias = None
    want = (SLOPE if needs[0] and not outputs & SLOPE else 0) | (
        DELTA if needs[2] and per_query_bandwidth and not outputs & DELTA else 0
    )
    if want:
        again = sums(x, y, bandwidth, bias, None, kernel, nu, exclude, want, highest)
        mean = again[1] if want & SLOPE else mean
        spread = again[3] if want & DELTA else spread
    dead = saved[5] == -torch.inf
    to_log_sum = torch.where(dead, 0.0, to_log_sum)
    if needs[0]:
        to_x = to_log_sum.to(mean.dtype)[..., None] * mean
    if needs[1] or (needs[3] and bias is not None) or (needs[2] and not per_query_bandwidth):
        to_y, to_bias, to_log_h = pulled(x, y, bandwidth, bias, saved[5], to_log_sum, kernel, nu, exclude, 0, highest)
        if needs[2] and not per_query_bandwidth:
            to_h = (to_log_h[:, None, :] / bandwidth).sum_to_size(bandwidth.shape)
    if needs[2] and per_query_bandwidth:
        to_h = ((to_log_sum * spread)[..., None] / bandwidth).sum_to_size(bandwidth.shape)
    return _masked(needs, (to_x, to_y, to_h, to_bias, None))


def _fill(grads: Any, results: Any) -> list[Tensor]:
    return [torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True)]


def _masked(needs: Any, grads: Any) -> tuple[Tensor | None, ...]:
    return tuple(g if need else None for need, g in zip(needs, grads, strict=True))


#: (log_sum (B, N), values or slope (B, N, dv), sum of p^2 (B, N), mean of d log w / d log h (B, N)); empty if not asked
sums = Op(
    f"kde_sums(Tensor x, Tensor y, Tensor bandwidth, Tensor? bias, Tensor? values, {_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tensors=5,
    reference=_sums_reference,
    fake=_fake_sums,
    kernels={**native_kernels(_sums_kernel), "triton": _sums_kernel(_Triton)},
    backward=_sums_backward,
    saves_results=True,
    partial_grads=True,
)


# ---- the transposed sums --------------------------------------------------------------------------------------------
def _pulled_reference(
    x: Tensor,
    y: Tensor,
    bandwidth: Tensor,
    bias: Tensor | None,
    log_sum: Tensor,
    grad: Tensor,
    kernel: int,
    nu: float,
    exclude: int,
    outputs: int,
    highest: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.pulled(x, y, bandwidth, bias, log_sum, grad, _KERNELS[kernel], nu, exclude)


def _fake_pulled(x: Tensor, y: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    column = y.new_empty(y.shape[:2], dtype=torch.float64)
    return y.new_empty(y.shape), column, torch.empty_like(column)


def _pulled_kernel(module: Any) -> Kernel:
    def run(
        x: Tensor,
        y: Tensor,
        bandwidth: Tensor,
        bias: Tensor | None,
        log_sum: Tensor,
        grad: Tensor,
        kernel: int,
        nu: float,
        exclude: int,
        outputs: int,
        highest: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The same kernel with its sides changed: data ask, queries are summed with bias -log_sum and weight grad.
        out = _fake_pulled(x, y)
        offset = torch.where(log_sum == -torch.inf, -torch.inf, -log_sum)
        shift = torch.zeros_like(out[1]) if bias is None else -bias
        module.kde_sums(
            y.contiguous(), x.contiguous(), bandwidth.mT.contiguous(), offset, None, grad.double().contiguous(),
            shift.contiguous(), kernel, nu, NOTHING if exclude == NOTHING else -exclude, highest, SLOPE,
            out[1], out[0], None, out[2],
        )  # fmt: skip
        return out

    return run


def _pulled_backward(needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return _masked(needs, pulled_vjp(*saved[:6], *_fill(grads, saved[6:]), *extra))


#: the vector-Jacobian product of log_sum for the data: (d/dy (B, M, d), d/dbias (B, M), d/dlog h_j (B, M))
pulled = Op(
    "kde_pulled(Tensor x, Tensor y, Tensor bandwidth, Tensor? bias, Tensor log_sum, Tensor grad, "
    f"{_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    tensors=6,
    reference=_pulled_reference,
    fake=_fake_pulled,
    kernels={**native_kernels(_pulled_kernel), "triton": _pulled_kernel(_Triton)},
    backward=_pulled_backward,
    saves_results=True,
    partial_grads=True,
)


# ---- second derivatives: autograd over tiles of queries -------------------------------------------------------------
def _has_query_bandwidth(x: Tensor, bandwidth: Tensor) -> bool:
    return bandwidth.shape[1] == x.shape[1] != 1


def _tiled_sums(x: Tensor, y: Tensor, bandwidth: Tensor, extra: tuple[Any, ...]) -> _kde_tiles.Tiled:
    kernel, nu, exclude, outputs, _ = extra

    def function(begin: int, end: int, x: Tensor, y: Tensor, h: Tensor, bias: Any, values: Any) -> Any:
        skip = exclude if exclude == NOTHING else exclude + begin
        return reference.sums(x, y, h, bias, values, _KERNELS[kernel], nu, skip, outputs)

    by_query = (True, False, _has_query_bandwidth(x, bandwidth), False, False)
    return _kde_tiles.Tiled(function, by_query, (True,) * 4, _kde_tiles.tile_rows(y.shape[1], x.shape[2]))


def _tiled_pulled(x: Tensor, y: Tensor, bandwidth: Tensor, extra: tuple[Any, ...]) -> _kde_tiles.Tiled:
    kernel, nu, exclude, _, _ = extra

    def function(
        begin: int, end: int, x: Tensor, y: Tensor, h: Tensor, bias: Any, log_sum: Tensor, grad: Tensor
    ) -> Any:
        skip = exclude if exclude == NOTHING else exclude + begin
        return reference.pulled(x, y, h, bias, log_sum, grad, _KERNELS[kernel], nu, skip)

    by_query = (True, False, _has_query_bandwidth(x, bandwidth), False, True, True)
    return _kde_tiles.Tiled(function, by_query, (False,) * 3, _kde_tiles.tile_rows(y.shape[1], x.shape[2]))


def _vjp_op(name: str, arguments: str, tensors: int, results: int, plan: Any, higher: bool) -> Op:
    """The op of a vector-Jacobian product by tiles; an absent optional tensor has an empty gradient.

    Composed of torch ops, it is the same on every backend. With ``higher`` it has a gradient of its own.
    """

    def tiled(args: tuple[Any, ...]) -> _kde_tiles.Tiled:
        return plan(args[0], args[1], args[2], args[tensors + results :])

    def run(vjp: Any, args: Any, grads: Any) -> tuple[Tensor | None, ...]:
        # Called by the dispatcher, autograd is switched off below this op, and the tiles need it.
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
            return vjp(args, grads)

    def forward(*args: Any) -> tuple[Tensor, ...]:
        found = run(tiled(args).vjp, args[:tensors], args[tensors : tensors + results])
        return tuple(args[0].new_empty(0) if g is None else g.contiguous() for g in found)

    def fake(*args: Any) -> tuple[Tensor, ...]:
        return tuple(args[0].new_empty(0) if t is None else t.new_empty(t.shape) for t in args[:tensors])

    def backward(needs: Any, saved: Any, extra: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        if not higher or torch.is_grad_enabled():
            raise NotImplementedError(f"a derivative of this order of density sums is not implemented ({name})")
        present = [None if t is None else c for t, c in zip(saved, cotangents, strict=False)]
        return _masked(needs, run(tiled((*saved, *extra)).gradient().vjp, saved, present))

    grads = ", ".join(f"Tensor grad{i}" for i in range(results))
    return Op(
        f"{name}({arguments}, {grads}, {_SETTINGS}) -> ({', '.join(['Tensor'] * tensors)})",
        tensors=tensors + results,
        reference=forward,
        fake=fake,
        kernels=dict.fromkeys(("cpu", "cuda", "triton", "emu"), forward),
        backward=backward,
    )


sums_vjp = _vjp_op(
    "kde_sums_vjp", "Tensor x, Tensor y, Tensor bandwidth, Tensor? bias, Tensor? values", 5, 4, _tiled_sums, True
)
pulled_vjp = _vjp_op(
    "kde_pulled_vjp",
    "Tensor x, Tensor y, Tensor bandwidth, Tensor? bias, Tensor log_sum, Tensor grad",
    6,
    3,
    _tiled_pulled,
    False,
)
