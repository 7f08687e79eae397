"""Row-wise log-sum-exp of an affine map, x W^T + b, tile by tile: what mixtures are made of.

The matrix products are torch's; between them one kernel adds the bias, reduces a row and, where wanted, leaves the
shares (the responsibilities) in place of the logits. No more than a tile of the N x K logits ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._op import Kernel, Op, native_kernels

_TILE = 1 << 19  # logits a tile: they stay in a second-level cache


def _tiles(n: int, k: int, device: torch.device) -> Iterator[tuple[int, int]]:
    rows = max(32, (_TILE if device.type == "cpu" else 1 << 24) // max(k, 1))
    for begin in range(0, n, rows):
        yield begin, min(n, begin + rows)


def _compute(t: Tensor) -> Tensor:
    t = t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
    return t.contiguous()


def _walk(
    module: Any, x: Tensor, weight: Tensor, bias: Tensor, softmax: bool
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Tiles of (begin, end, logits or shares, log-sum-exp); the two buffers are used again for the next tile."""
    weight, bias = _compute(weight).t(), _compute(bias)
    n, k = x.shape[0], weight.shape[1]
    buffer: Tensor | None = None
    for begin, end in _tiles(n, k, x.device):
        rows = _compute(x[begin:end])
        if buffer is None or buffer.shape[0] != end - begin:
            buffer = torch.empty(end - begin, k, dtype=weight.dtype, device=x.device)
        torch.mm(rows, weight, out=buffer)
        sums = torch.empty(end - begin, dtype=weight.dtype, device=x.device)
        module.row_logsumexp(buffer, bias, sums, softmax)
        yield begin, end, buffer, sums


def _logsumexp_kernel(module: Any) -> Kernel:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
        for begin, end, _, sums in _walk(module, x, weight, bias, False):
            out[begin:end] = sums
        return out

    return run


def _softmax_kernel(module: Any) -> Kernel:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
        shares = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        for begin, end, tile, sums in _walk(module, x, weight, bias, True):
            out[begin:end] = sums
            shares[begin:end] = tile
        return out, shares

    return run


def _moments_kernel(module: Any) -> Kernel:
    def run(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
        # Tiles are summed in float64: a float32 running sum over many tiles would lose what each of them holds.
        first = torch.zeros(weight.shape, dtype=torch.float64, device=x.device)
        mass = torch.zeros(weight.shape[0], dtype=torch.float64, device=x.device)
        part: Tensor | None = None
        for begin, end, tile, sums in _walk(module, x, weight, bias, True):
            out[begin:end] = sums
            tile *= _compute(scale[begin:end])[:, None]
            part = torch.mm(tile.t(), _compute(x[begin:end]), out=part)
            first += part
            mass += tile.sum(0)  # in the tile's dtype: with a float64 accumulator torch's column sum is 50 times slower
        return out, mass, first

    return run


def _backward_kernel(module: Any) -> Kernel:
    def run(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gx = torch.empty_like(x, memory_format=torch.contiguous_format)
        compute = _compute(weight)
        gw = torch.zeros(weight.shape, dtype=torch.float64, device=x.device)
        gb = torch.zeros(bias.shape, dtype=torch.float64, device=x.device)
        for begin, end, tile, _ in _walk(module, x, weight, bias, True):
            tile *= _compute(grad[begin:end])[:, None]
            gx[begin:end] = tile @ compute
            gw += tile.t() @ _compute(x[begin:end])
            gb += tile.sum(0)
        return gx, gw.to(weight.dtype), gb.to(bias.dtype)

    return run


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    wide = torch.float64
    return x.to(wide) @ weight.to(wide).t() + bias.to(wide)


def _reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.logsumexp(_logits(x, weight, bias), 1).to(x.dtype)


def _softmax_reference(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    logits = _logits(x, weight, bias)
    return torch.logsumexp(logits, 1).to(x.dtype), torch.softmax(logits, 1).to(x.dtype)


def _moments_reference(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = _logits(x, weight, bias)
    shares = torch.softmax(logits, 1) * scale.double()[:, None]
    return torch.logsumexp(logits, 1).to(x.dtype), shares.sum(0), shares.t() @ x.double()


def _backward_reference(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shares = torch.softmax(_logits(x, weight, bias), 1) * grad.double()[:, None]
    return (
        (shares @ weight.double()).to(x.dtype),
        (shares.t() @ x.double()).to(weight.dtype),
        shares.sum(0).to(bias.dtype),
    )


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def _second_backward(
    needs: Any, saved: Any, extra: Any, grad_x: Tensor, grad_w: Tensor, grad_b: Tensor
) -> tuple[Tensor, ...]:
    # The three results are the derivatives of L = sum_ik g_i P_ik s_ik with s = grad_x W^T + x grad_w^T + grad_b held.
    x, weight, bias, g, grad_x, grad_w, grad_b = _wide(*saved, grad_x, grad_w, grad_b)
    shares = affine_softmax(x, weight, bias)[1]
    s = grad_x @ weight.t() + x @ grad_w.t() + grad_b
    mean = (shares * s).sum(1, keepdim=True)
    scaled = shares * g[:, None]
    logits = scaled * (s - mean)
    to_x = logits @ weight + scaled @ grad_w
    to_w = logits.t() @ x + scaled.t() @ grad_x
    return tuple(a.to(b.dtype) for a, b in zip((to_x, to_w, logits.sum(0), mean[:, 0]), saved, strict=True))


def _moments_backward(
    needs: Any, saved: Any, extra: Any, grad: Tensor, grad_mass: Tensor, grad_first: Tensor
) -> tuple[Tensor, ...]:
    x, weight, bias, scale, grad = _wide(*saved, grad)
    grad_mass, grad_first = grad_mass.to(x.dtype), grad_first.to(x.dtype)
    shares = affine_softmax(x, weight, bias)[1]
    s = x @ grad_first.t() + grad_mass
    mean = (shares * s).sum(1, keepdim=True)
    scaled = shares * scale[:, None]
    logits = shares * grad[:, None] + scaled * (s - mean)
    to_x = logits @ weight + scaled @ grad_first
    return tuple(a.to(b.dtype) for a, b in zip((to_x, logits.t() @ x, logits.sum(0), mean[:, 0]), saved, strict=True))


_backward_op = Op(
    "affine_logsumexp_backward(Tensor x, Tensor weight, Tensor bias, Tensor grad) -> (Tensor, Tensor, Tensor)",
    tensors=4,
    reference=_backward_reference,
    fake=lambda x, weight, bias, grad: (torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)),
    kernels=native_kernels(_backward_kernel),
    backward=_second_backward,
)


def _backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return _backward_op(*saved, grad)


def _softmax_backward(needs: Any, saved: Any, extra: Any, grad: Tensor, grad_shares: Tensor) -> tuple[Tensor, ...]:
    x, weight, _, _, shares = saved
    inner = (grad_shares * shares).sum(1, keepdim=True)
    logits = shares * (grad_shares - inner + grad[:, None])
    return logits @ weight, logits.t() @ x, logits.sum(0)


#: log sum_k exp(x_i . w_k + b_k), shape (N,)
affine_logsumexp = Op(
    "affine_logsumexp(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    tensors=3,
    reference=_reference,
    fake=lambda x, weight, bias: x.new_empty(x.shape[0]),
    kernels=native_kernels(_logsumexp_kernel),
    backward=_backward,
)
#: the same, and the shares softmax_k(x_i . w_k + b_k), shape (N, K)
affine_softmax = Op(
    "affine_softmax(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)",
    tensors=3,
    reference=_softmax_reference,
    fake=lambda x, weight, bias: (x.new_empty(x.shape[0]), x.new_empty(x.shape[0], weight.shape[0])),
    kernels=native_kernels(_softmax_kernel),
    backward=_softmax_backward,
    saves_results=True,
)
#: the same log-sum-exp, and what an EM step needs of scaled shares: sums (K,) and sum_i share_ik x_i (K, d), float64
affine_moments = Op(
    "affine_moments(Tensor x, Tensor weight, Tensor bias, Tensor scale) -> (Tensor, Tensor, Tensor)",
    tensors=4,
    reference=_moments_reference,
    fake=lambda x, weight, bias, scale: (
        x.new_empty(x.shape[0]),
        weight.new_empty(weight.shape[0], dtype=torch.float64),
        weight.new_empty(weight.shape, dtype=torch.float64),
    ),
    kernels=native_kernels(_moments_kernel),
    backward=_moments_backward,
)
