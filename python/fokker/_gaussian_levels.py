"""Gaussian mixtures whose queries each have their noise level, in one pass of a kernel without gradients.

C_ki = a_i^2 S_k + s_i I is diagonal in a basis of the component's own, whatever the level: isotropic and diagonal
covariances in the coordinates', full ones in their eigenvectors', low-rank ones W W^T + t I, with W^T W = V diag(g)
V^T, in the columns of W V and what is orthogonal to them. So a pair costs a reciprocal a number and one logarithm
besides products with the basis. Where derivatives are wanted but that of log p in x, `_gaussian_tiles` does the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _backend
from ._gaussian_ops import _matrix, _points, row_tiles
from ._gaussian_tiles import _LOG_2_PI, DISTANCE, MEAN, SCORE, SHARES, Factors, mixture_sums
from ._op import Kernel, Op, TritonModule, _functorch_level, _is_compiling, native_kernels
from .reference import mixture as reference

_TRITON = TritonModule("gaussian_levels", adjacent_queries=True, gaussian_rows=1)


def _kernel(module: Any) -> Kernel:
    def run(
        x: Tensor, alpha: Tensor, noise: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, basis: Tensor | None,
        floor: Tensor | None, outputs: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        n, k = x.shape[0], mean.shape[0]
        turned = None
        if basis is not None:
            basis, turned = _matrix(module, basis), _matrix(module, basis.mT)
            floor = None if floor is None else floor.contiguous()
        fixed = (bias.contiguous(), mean.contiguous(), variance.contiguous(), basis, turned, floor)
        # a GPU's log-sum-exp reads the densities of all pairs of a tile
        tiles = row_tiles(n, k, x.device) if module.adjacent_queries else [(0, n)]
        parts = []
        for i, j in tiles:
            level = (t.contiguous() if t.shape[0] == 1 else t[i:j].contiguous() for t in (alpha, noise))
            parts.append(_tile(module, x[i:j], *level, fixed, outputs))
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(t, -1 if at > 2 else 0) for at, t in enumerate(zip(*parts, strict=True)))

    return run


def _tile(
    module: Any, x: Tensor, alpha: Tensor, noise: Tensor, fixed: tuple[Tensor | None, ...], outputs: int
) -> tuple[Tensor, ...]:
    mean, turn = fixed[1], module.adjacent_queries
    log_sum, score, posterior, shares, squared = _empty(x, mean, outputs)  # type: ignore[arg-type]
    sums = [
        (torch.empty_like(t.t(), memory_format=torch.contiguous_format) if turn else t) if outputs & bit else None
        for t, bit in ((score, SCORE), (posterior, MEAN))
    ]
    joint = shares if outputs & SHARES else x.new_empty(mean.shape[0], x.shape[0]) if turn else None  # type: ignore[union-attr]
    distance = squared if outputs & DISTANCE else None
    module.gaussian_levels(
        _points(module, x), alpha, noise, *fixed, log_sum, *sums, joint, distance, bool(outputs & SHARES)
    )
    if turn:
        score, posterior = (
            t if found is None else found.t().contiguous() for t, found in zip((score, posterior), sums, strict=True)
        )
    return log_sum, score, posterior, shares, squared


def _empty(x: Tensor, mean: Tensor, outputs: int) -> tuple[Tensor, ...]:
    n, k = x.shape[0], mean.shape[0]
    shapes = {SCORE: x.shape, MEAN: x.shape, SHARES: (k, n), DISTANCE: (k, n)}
    return x.new_empty(n), *(x.new_empty(shape if outputs & bit else (0,)) for bit, shape in shapes.items())


#: log p (N,), score and posterior mean (N, d), shares and squared distances (K, N); those not asked for are empty.
#: alpha and noise (N,) or one; variance (K, d), (K, 1) isotropic, of the columns of basis (K, d, rank), beside which a
#: full one has floor None; or one of each for all components.
gaussian_levels = Op(
    "gaussian_levels(Tensor x, Tensor alpha, Tensor noise, Tensor bias, Tensor mean, Tensor variance, Tensor? basis, "
    "Tensor? floor, int outputs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tensors=8,
    reference=reference.levels,
    fake=lambda x, alpha, noise, bias, mean, variance, basis, floor, outputs: _empty(x, mean, outputs),
    kernels=native_kernels(_kernel, _TRITON),
)


def takes(kind: str, *tensors: Tensor | None) -> bool:
    """Whether a kernel may compute this: no derivative is wanted, and the backend has bases where they are needed."""
    recording = torch.is_grad_enabled()
    if _is_compiling():  # a transform inside of what is compiled records, and does not show in the tensors
        wanted = recording
    elif _functorch_level() or torch.autograd.forward_ad._current_level >= 0:
        wanted = True
    else:
        wanted = recording and any(t is not None and t.requires_grad for t in tensors)
    if wanted:
        return False
    if kind in ("isotropic", "diag"):
        return True
    return all(t is None or t.is_cpu for t in tensors) and _backend.current in ("auto", "cpu", "reference")


def level_sums(
    x: Tensor, alpha: Tensor, noise: Tensor, log_w: Tensor, mean: Tensor, factors: Factors, outputs: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:  # fmt: skip
    """What `fokker.mixture.evaluate` is asked for, by name, with squared distances; alpha and noise = sigma^2 (n,) or
    (1,)."""
    kind, basis, floor = factors.kind, None, None
    if kind in ("isotropic", "diag"):
        variance = factors.base[:, None] if kind == "isotropic" else factors.base  # type: ignore[index]
    else:
        variance, basis = factors.values, factors.vectors
        if kind == "lowrank":
            basis, floor = factors.base @ basis, factors.noise  # type: ignore[operator]
    bias = log_w - 0.5 * x.shape[1] * _LOG_2_PI
    tensors = (x, alpha, noise, bias, mean, variance, basis, floor)
    op = gaussian_levels.torch_op if _is_compiling() else gaussian_levels  # as no derivative is wanted
    found = op(*(None if t is None else t.detach().to(dtype) for t in tensors), outputs)
    names = {"score": SCORE, "posterior_mean": MEAN, "responsibilities": SHARES, "mahalanobis": DISTANCE}
    asked = {name: t for (name, bit), t in zip(names.items(), found[1:], strict=True) if outputs & bit}
    return {"log_prob": found[0]} | {
        name: t.mT if names[name] in (SHARES, DISTANCE) else t for name, t in asked.items()
    }


class _LogDensity(torch.autograd.Function):
    """The log density, whose gradient in x is the score of the same pass; a second derivative by tiles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arguments: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
        found = level_sums(x, *arguments, SCORE, dtype)
        ctx.save_for_backward(x, found["score"])
        ctx.rest = arguments, dtype
        return found["log_prob"]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, score = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return (grad[:, None] * score).to(x.dtype), None, None
        arguments, dtype = ctx.rest
        log_p = mixture_sums(x, *arguments, 0, dtype)[0]
        return *torch.autograd.grad(log_p, x, grad, create_graph=True), None, None


def log_density(
    x: Tensor, alpha: Tensor, noise: Tensor, log_w: Tensor, mean: Tensor, factors: Factors, dtype: torch.dtype
) -> Tensor:
    """log p (n,), differentiable in x alone."""
    return _LogDensity.apply(x, (alpha, noise, log_w, mean, factors), dtype)
