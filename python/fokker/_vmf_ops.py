"""The registered ops behind `fokker.vmf`: scalar functions of the concentration, rows, samples, resultants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._elementwise import empty_result, reduce_to
from ._op import Kernel, Op, native_kernels
from .reference import vmf as reference
from .reference import vmf_sample as sample_reference

# The order of math::VmfFn in csrc/math/vmf.h.
FUNCTIONS = (
    "log_normalizer",
    "mean_resultant",
    "complement",
    "resultant_derivative",
    "resultant_second",
    "entropy",
    "kl_uniform",
    "concentration_from_resultant",
    "concentration_from_complement",
)


def _scalar_kernel(function: int) -> Callable[[Any], Kernel]:
    def make(module: Any) -> Kernel:
        def run(k: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
            if out is None:
                out = empty_result(k)
            module.vmf_scalar(function, dim, k, out)
            return out

        run.writes_out = True  # type: ignore[attr-defined]
        return run

    return make


def _triton(name: str) -> Kernel:
    def run(*args: Any) -> Any:
        from .triton_kernels import vmf

        return getattr(vmf, name)(*args)

    return run


# d/dk of each, in terms of the others: log C' = -A, entropy' = -k A', KL' = k A', and the inverses of A and 1 - A.
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "log_normalizer": lambda k, out, dim: -scalar["mean_resultant"](k, dim),
    "mean_resultant": lambda k, out, dim: scalar["resultant_derivative"](k, dim),
    "complement": lambda k, out, dim: -scalar["resultant_derivative"](k, dim),
    "resultant_derivative": lambda k, out, dim: scalar["resultant_second"](k, dim),
    "entropy": lambda k, out, dim: -k * scalar["resultant_derivative"](k, dim),
    "kl_uniform": lambda k, out, dim: k * scalar["resultant_derivative"](k, dim),
    "concentration_from_resultant": lambda r, out, dim: 1 / scalar["resultant_derivative"](out, dim),
    "concentration_from_complement": lambda r, out, dim: -1 / scalar["resultant_derivative"](out, dim),
}


def _scalar_op(name: str) -> Op:
    def backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor]:
        if name not in _DERIVATIVES:
            raise NotImplementedError("the third derivative of the mean resultant length is not available")
        argument, result = saved[0], saved[-1]  # the inverses save their result, the others have no use for it
        return (grad * _DERIVATIVES[name](argument, result, *extra),)

    return Op(
        f"vmf_{name}(Tensor concentration, int dim) -> Tensor",
        tensors=1,
        reference=lambda k, dim: reference.scalar(name, dim, k),
        fake=lambda k, dim: empty_result(k),
        kernels={**native_kernels(_scalar_kernel(FUNCTIONS.index(name))), "triton": _triton(name)},
        backward=backward,
        saves_results=name.startswith("concentration"),
        elementwise=True,
    )


scalar: dict[str, Op] = {name: _scalar_op(name) for name in FUNCTIONS}


# ---- Bregman divergence of -log C: what KL(vMF || vMF) is beside the angle between the means ------------------------
def _bregman_kernel(module: Any) -> Kernel:
    def run(p: Tensor, q: Tensor, dim: int) -> Tensor:
        out = empty_result(p, q, ("concentration_p", "concentration_q"))
        module.vmf_bregman(dim, p, q, out, None, None)
        return out

    return run


def _bregman_grad_kernel(module: Any) -> Kernel:
    def run(p: Tensor, q: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        dp, dq = empty_result(p, q), empty_result(p, q)
        module.vmf_bregman(dim, p, q, None, dp, dq)
        return dp, dq

    return run


def _bregman_grad_backward(needs: Any, saved: Any, extra: Any, gp: Tensor, gq: Tensor) -> tuple[Tensor | None, ...]:
    (p, q), (dim,) = saved, extra
    slope = scalar["resultant_derivative"]
    # dp = A'(p) (p - q), dq = A(q) - A(p)
    to_p = gp * (scalar["resultant_second"](p, dim) * (p - q) + slope(p, dim)) - gq * slope(p, dim)
    to_q = gq * slope(q, dim) - gp * slope(p, dim)
    return reduce_to(to_p, p), reduce_to(to_q, q)


def _bregman_backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    p, q = saved
    dp, dq = bregman_grad(p, q, *extra)
    return reduce_to(grad * dp, p), reduce_to(grad * dq, q)


bregman_grad = Op(
    "vmf_bregman_grad(Tensor concentration_p, Tensor concentration_q, int dim) -> (Tensor, Tensor)",
    tensors=2,
    reference=lambda p, q, dim: reference.bregman_grad(dim, p, q),
    fake=lambda p, q, dim: (empty_result(p, q), empty_result(p, q)),
    kernels=native_kernels(_bregman_grad_kernel),
    backward=_bregman_grad_backward,
    elementwise=True,
)
bregman = Op(
    "vmf_bregman(Tensor concentration_p, Tensor concentration_q, int dim) -> Tensor",
    tensors=2,
    reference=lambda p, q, dim: reference.bregman(dim, p, q),
    fake=lambda p, q, dim: empty_result(p, q),
    kernels=native_kernels(_bregman_kernel),
    backward=_bregman_backward,
    elementwise=True,
)


# ---- log density of points ------------------------------------------------------------------------------------------
def _log_prob_shape(x: Tensor, mean: Tensor, k: Tensor) -> Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape[:-1], mean.shape[:-1], k.shape))


def _log_prob_kernel(module: Any) -> Kernel:
    def adjacent(t: Tensor) -> Tensor:
        return t if t.stride(-1) == 1 else t.contiguous()

    def run(x: Tensor, mean: Tensor, k: Tensor) -> Tensor:
        dtype = x.dtype
        if dtype in (torch.float16, torch.bfloat16):
            x, mean, k = x.float(), mean.float(), k.float()
        out = _log_prob_shape(x, mean, k)
        module.vmf_log_prob(adjacent(x), adjacent(mean), k, out)
        return out.to(dtype)

    return run


def _log_prob_backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mean, k = saved
    d = x.shape[-1]
    slope = (grad * k)[..., None]
    to_k = None
    if needs[2]:
        to_k = reduce_to(grad * (torch.linalg.vecdot(x, mean) - scalar["mean_resultant"](k, d)), k)
    return (
        reduce_to(slope * mean, x) if needs[0] else None,
        reduce_to(slope * x, mean) if needs[1] else None,
        to_k,
    )


#: log C_d(k) + k mu.x over broadcast batch dimensions
log_prob = Op(
    "vmf_log_prob(Tensor x, Tensor mean_direction, Tensor concentration) -> Tensor",
    tensors=3,
    reference=reference.log_prob,
    fake=_log_prob_shape,
    kernels=native_kernels(_log_prob_kernel),
    backward=_log_prob_backward,
)


# ---- resultant: one pass over the rows ------------------------------------------------------------------------------
def _resultant_kernel(module: Any) -> Kernel:
    def run(x: Tensor, weights: Tensor | None) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            x, weights = x.float(), None if weights is None else weights.float()
        n, d = x.shape
        out = torch.empty(d + 2, dtype=torch.float64, device=x.device)
        # rows whose number alone decides the bits: a GPU of a hundred multiprocessors wants many
        most = 1024 if module.adjacent_queries else 64
        partial = torch.empty(max(1, min(most, n // 64)), d + 2, dtype=torch.float64, device=x.device)
        module.resultant(x.contiguous(), None if weights is None else weights.contiguous(), partial, out)
        return out

    return run


def _resultant_reference(x: Tensor, weights: Tensor | None) -> Tensor:
    wide = x.double()
    w = torch.ones_like(wide[:, 0]) if weights is None else weights.double()
    off = (wide.square().sum(1) - 1).abs()
    off = (off.amax() if len(x) else off.sum()).detach()
    return torch.cat([w @ wide, torch.stack([w.sum(), off])])


def _resultant_backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weights = saved
    to_sum, to_mass = grad[: x.shape[1]], grad[x.shape[1]]
    to_x = to_w = None
    if needs[0]:
        to_x = to_sum.expand(x.shape) if weights is None else weights.double()[:, None] * to_sum
        to_x = to_x.to(x.dtype)
    if needs[1]:
        to_w = (x.double() @ to_sum + to_mass).to(weights.dtype)
    return to_x, to_w


#: sum_i w_i x_i, then sum_i w_i, then max_i | |x_i|^2 - 1 | (a check, without a gradient), in float64
resultant = Op(
    "vmf_resultant(Tensor x, Tensor? weights) -> Tensor",
    tensors=2,
    reference=_resultant_reference,
    fake=lambda x, weights: x.new_empty(x.shape[1] + 2, dtype=torch.float64),
    kernels=native_kernels(_resultant_kernel),
    backward=_resultant_backward,
)


# ---- samples --------------------------------------------------------------------------------------------------------
def _sample_kernel(module: Any) -> Kernel:
    def run(
        mean: Tensor, k: Tensor, ids: Tensor | None, first: int, seed: int, step: int, n: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, k = mean.contiguous(), k.contiguous()
        out = torch.empty(n, mean.shape[1], dtype=mean.dtype, device=mean.device)
        w, one_minus_w = out.new_empty(n), out.new_empty(n)
        ids = None if ids is None else ids.contiguous()
        module.vmf_sample(mean, k, ids, first, seed & (2**64 - 1), step, out, w, one_minus_w)
        return out, w, one_minus_w

    return run


def _sample_backward_kernel(module: Any) -> Kernel:
    def run(grad: Tensor, x: Tensor, mean: Tensor, w: Tensor, one_minus_w: Tensor) -> tuple[Tensor, Tensor]:
        grad_mean, grad_cosine = torch.empty_like(x), torch.empty_like(w)
        module.vmf_sample_backward(grad.contiguous(), x, mean.contiguous(), w, one_minus_w, grad_mean, grad_cosine)
        return grad_mean, grad_cosine

    return run


def _cosine_gradient_kernel(module: Any) -> Kernel:
    def run(k: Tensor, a: Tensor, complement: Tensor, w: Tensor, one_minus_w: Tensor, dim: int) -> Tensor:
        out = torch.empty_like(w)
        module.vmf_cosine_gradient(dim, k, a, complement, w, one_minus_w, out)
        return out

    return run


def _no_second_derivative(needs: Any, saved: Any, extra: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    # Left to autograd, the terms through w and 1 - w would be missing without a word.
    raise NotImplementedError("the second derivative of a vMF sample is not implemented")


sample_backward = Op(
    "vmf_sample_backward(Tensor grad, Tensor x, Tensor mean, Tensor w, Tensor one_minus_w) -> (Tensor, Tensor)",
    tensors=5,
    reference=sample_reference.sample_backward,
    fake=lambda grad, x, mean, w, one_minus_w: (torch.empty_like(x), torch.empty_like(w)),
    kernels=native_kernels(_sample_backward_kernel),
    backward=_no_second_derivative,
)
#: d(mu.x)/dk of samples at a fixed probability (implicit reparameterisation)
cosine_gradient = Op(
    "vmf_cosine_gradient(Tensor concentration, Tensor mean_resultant, Tensor complement, Tensor w, Tensor one_minus_w, "
    "int dim) -> Tensor",
    tensors=5,
    reference=lambda k, a, c, w, u, dim: sample_reference.cosine_gradient(dim, k, a, c, w, u),
    fake=lambda k, a, c, w, u, dim: torch.empty_like(w),
    kernels=native_kernels(_cosine_gradient_kernel),
    backward=_no_second_derivative,
)


def _sample_gradient(needs: Any, saved: Any, extra: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    mean, k, _, x, w, one_minus_w = saved
    dim, n, batch = x.shape[1], x.shape[0], max(mean.shape[0], k.shape[0])
    grad_mean, grad_cosine = sample_backward(grad, x, mean, w, one_minus_w)

    def fold(t: Tensor, like: Tensor) -> Tensor:  # sum over the samples of each batch entry
        return reduce_to(t.reshape(n // batch if batch else 0, batch, *t.shape[1:]).sum(0), like)

    to_mean = fold(grad_mean, mean) if needs[0] else None
    to_k = None
    if needs[1]:
        every = k.expand(batch).repeat(n // batch if batch else 0)
        a, complement = scalar["mean_resultant"](every, dim), scalar["complement"](every, dim)
        to_k = fold(grad_cosine * cosine_gradient(every, a, complement, w, one_minus_w, dim), k)
    return to_mean, to_k, None


#: n samples as rows, with w = mu.x and 1 - w; mean (batch or 1, d), concentration (batch or 1), row i uses i % batch
sample = Op(
    "vmf_sample(Tensor mean, Tensor concentration, Tensor? sample_ids, SymInt first_id, SymInt seed, SymInt step, "
    "SymInt n) -> (Tensor, Tensor, Tensor)",
    tensors=3,
    reference=sample_reference.sample_rows,
    fake=lambda mean, k, ids, first, seed, step, n: (
        mean.new_empty(n, mean.shape[1]),
        mean.new_empty(n),
        mean.new_empty(n),
    ),
    kernels=native_kernels(_sample_kernel),
    backward=_sample_gradient,
    saves_results=True,
)
