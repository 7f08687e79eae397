"""The von Mises-Fisher distribution on the unit sphere S^{d-1}, in plain PyTorch.

Density C_d(k) exp(k mu.x), C_d(k) = k^v / ((2 pi)^{v+1} I_v(k)), v = d/2 - 1 (Mardia and Jupp 2000, 9.3.4); k = 0 is
the uniform distribution. All arithmetic is float64; a result is rounded once to the dtype of the arguments. Dimensions
2 to 1e6, concentrations 0 to 1e300 and inf; a negative or nan concentration gives nan.

Accuracy in float64: log_normalizer and entropy within 2e-15 max(|f|, 1); mean_resultant_length, its complement and
kl_uniform within 4e-15 relative; the concentration from either end within 4e-15; A' 4e-15, A'' 5e-14.

Derivatives are formulas too (log C' = -A, A', A'', entropy' = -k A', KL' = k A', inverse' = 1/A'), in reverse and
forward mode and under torch.func; what would need A''' raises NotImplementedError.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

from fokker.reference import _vmf_formulas as formulas

__all__ = [
    "bregman",
    "bregman_grad",
    "concentration_from_resultant",
    "entropy",
    "fit",
    "kl_divergence",
    "kl_uniform",
    "log_normalizer",
    "log_prob",
    "mean_resultant_length",
    "mixture_log_prob",
    "point_mass",
    "resultant_derivative",
    "scalar",
]


# ---- scalar functions of one argument, with their derivatives --------------------------------------------------------
def _evaluate(name: str, dim: int, k: Tensor) -> Tensor:
    if name == "concentration_from_resultant":
        return formulas.inverse(dim, k, 1 - k)
    if name == "concentration_from_complement":
        return formulas.inverse(dim, 1 - k, k)
    return formulas.scalar(name, dim, k)


def _slope(name: str, dim: int, k: Tensor) -> Tensor:
    """d/dk of a named function, itself differentiable."""
    if name == "log_normalizer":
        return -_apply("mean_resultant", dim, k)
    if name in ("mean_resultant", "complement"):
        first = _apply("resultant_derivative", dim, k)
        return first if name == "mean_resultant" else -first
    if name == "resultant_derivative":
        return _apply("resultant_second", dim, k)
    if name in ("entropy", "kl_uniform"):
        moment = k * _apply("resultant_derivative", dim, k)
        return moment if name == "kl_uniform" else -moment
    if name.startswith("concentration_from"):
        inverse = 1 / _apply("resultant_derivative", dim, _apply(name, dim, k))
        return inverse if name == "concentration_from_resultant" else -inverse
    raise NotImplementedError("fokker.reference.vmf: the third derivative of A is not available")


class _Scalar(torch.autograd.Function):
    """A named function of a float64 tensor."""

    @staticmethod
    def forward(name: str, dim: int, k: Tensor) -> Tensor:
        return _evaluate(name, dim, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.dim, k = inputs
        ctx.save_for_backward(k)
        ctx.save_for_forward(k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        (k,) = ctx.saved_tensors
        return None, None, grad * _slope(ctx.name, ctx.dim, k)


class _TransformableScalar(_Scalar):
    """With forward mode and vmap; apart, because torch.compile traces no Function that has them."""

    @staticmethod
    def jvp(ctx: Any, _name: None, _dim: None, tangent: Tensor) -> Tensor:
        (k,) = ctx.saved_tensors
        # Torch turns forward mode off inside jvp; an outer level of it must see this product, or it gets a silent zero.
        with _set_fwd_grad_enabled(True):
            return tangent * _slope(ctx.name, ctx.dim, unpack_dual(k).primal)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], name: str, dim: int, k: Tensor) -> tuple[Tensor, int]:
        return _TransformableScalar.apply(name, dim, k), in_dims[2]


def _apply(name: str, dim: int, k: Tensor) -> Tensor:
    return (_Scalar if torch.compiler.is_compiling() else _TransformableScalar).apply(name, dim, k)


# ---- the divergence of two concentrations ----------------------------------------------------------------------------
def _bregman_grads(dim: int, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """dB/dp = A'(p) (p - q) and dB/dq = A(q) - A(p)."""
    return _apply("resultant_derivative", dim, p) * (p - q), _apply_pair("difference", dim, p, q)


class _Pair(torch.autograd.Function):
    """B(p, q), or A(q) - A(p), of two float64 tensors of one shape."""

    @staticmethod
    def forward(name: str, dim: int, p: Tensor, q: Tensor) -> Tensor:
        return formulas.bregman(dim, p, q)[0 if name == "divergence" else 1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.dim, p, q = inputs
        ctx.save_for_backward(p, q)
        ctx.save_for_forward(p, q)

    @staticmethod
    def _slopes(ctx: Any, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        if ctx.name == "divergence":
            return _bregman_grads(ctx.dim, p, q)
        return -_apply("resultant_derivative", ctx.dim, p), _apply("resultant_derivative", ctx.dim, q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor]:
        to_p, to_q = _Pair._slopes(ctx, *ctx.saved_tensors)
        return None, None, grad * to_p, grad * to_q


class _TransformablePair(_Pair):
    @staticmethod
    def jvp(ctx: Any, _name: None, _dim: None, p_t: Tensor | None, q_t: Tensor | None) -> Tensor | None:
        p, q = (unpack_dual(t).primal for t in ctx.saved_tensors)
        with _set_fwd_grad_enabled(True):
            terms = [t * s for t, s in zip((p_t, q_t), _Pair._slopes(ctx, p, q), strict=True) if t is not None]
            return sum(terms[1:], terms[0]) if terms else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], name: str, dim: int, p: Tensor, q: Tensor) -> tuple[Tensor, int]:
        def to_front(t: Tensor, at: int | None) -> Tensor:
            return t.expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0)

        return _TransformablePair.apply(name, dim, to_front(p, in_dims[2]), to_front(q, in_dims[3])), 0


def _apply_pair(name: str, dim: int, p: Tensor, q: Tensor) -> Tensor:
    return (_Pair if torch.compiler.is_compiling() else _TransformablePair).apply(name, dim, p, q)


# ---- the functions ---------------------------------------------------------------------------------------------------
def _as_float(*values: Tensor | float) -> tuple[torch.dtype, tuple[Tensor, ...]]:
    """The arguments in float64, and the dtype of the result: torch's promotion, integers giving the default dtype."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    dtype = torch.get_default_dtype()
    if tensors:
        dtype = tensors[0].dtype
        for t in tensors[1:]:
            if t.dtype != dtype:
                dtype = torch.promote_types(dtype, t.dtype)
    if dtype.is_complex:
        raise TypeError(f"a concentration must be real, got {dtype}")
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    device = tensors[0].device if tensors else None
    wide = [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device=device) for v in values]
    return dtype, tuple(t.to(torch.float64) for t in wide)


def _check_dim(dim: int) -> None:
    if dim < 2:
        raise ValueError(f"dim must be at least 2, got {dim}")


def scalar(name: str, dim: int, concentration: Tensor | float) -> Tensor:
    """One of formulas.LIMITS, concentration_from_resultant or concentration_from_complement, by name."""
    _check_dim(dim)
    dtype, (k,) = _as_float(concentration)
    return _apply(name, dim, k).to(dtype)


def log_normalizer(dim: int, concentration: Tensor | float) -> Tensor:
    """log C_d(k); at k = 0 minus the log of the sphere's area. Its derivative is -A(k)."""
    return scalar("log_normalizer", dim, concentration)


def mean_resultant_length(dim: int, concentration: Tensor | float, *, complement: bool = False) -> Tensor:
    """A_d(k) = I_{d/2}(k) / I_{d/2-1}(k) = E[mu.x], or 1 - A_d(k) (Mardia and Jupp 2000, 9.3.9)."""
    return scalar("complement" if complement else "mean_resultant", dim, concentration)


def resultant_derivative(dim: int, concentration: Tensor | float) -> Tensor:
    """A_d'(k) = 1 - A^2 - (d-1) A / k, the variance of mu.x."""
    return scalar("resultant_derivative", dim, concentration)


def entropy(dim: int, concentration: Tensor | float) -> Tensor:
    """The differential entropy -(log C_d(k) + k A_d(k)), in nats."""
    return scalar("entropy", dim, concentration)


def kl_uniform(dim: int, concentration: Tensor | float) -> Tensor:
    """KL(vMF(mu, k) || uniform) = log C(k) - log C(0) + k A(k), in nats; k^2/(2d) as k -> 0."""
    return scalar("kl_uniform", dim, concentration)


def concentration_from_resultant(
    dim: int, resultant: Tensor | float | None = None, *, complement: Tensor | float | None = None
) -> Tensor:
    """The k with A_d(k) = R, from exactly one of R and 1 - R (Banerjee et al. 2005, then Halley's method).

    R = 0 gives 0, R = 1 inf, anything outside [0, 1] nan.
    """
    if (resultant is None) == (complement is None):
        raise ValueError("concentration_from_resultant takes either resultant or complement")
    if resultant is not None:
        return scalar("concentration_from_resultant", dim, resultant)
    assert complement is not None
    return scalar("concentration_from_complement", dim, complement)


def bregman(dim: int, concentration_p: Tensor | float, concentration_q: Tensor | float) -> Tensor:
    """B(p, q) = log C(p) - log C(q) + A(p) (p - q) >= 0: KL of two vMF distributions with one mean direction."""
    _check_dim(dim)
    dtype, pair = _as_float(concentration_p, concentration_q)
    return _apply_pair("divergence", dim, *torch.broadcast_tensors(*pair)).to(dtype)


def bregman_grad(dim: int, concentration_p: Tensor | float, concentration_q: Tensor | float) -> tuple[Tensor, Tensor]:
    """dB/dp = A'(p) (p - q) and dB/dq = A(q) - A(p), differentiable."""
    _check_dim(dim)
    dtype, pair = _as_float(concentration_p, concentration_q)
    to_p, to_q = _bregman_grads(dim, *torch.broadcast_tensors(*pair))
    return to_p.to(dtype), to_q.to(dtype)


def kl_divergence(
    mean_p: Tensor, concentration_p: Tensor | float, mean_q: Tensor, concentration_q: Tensor | float
) -> Tensor:
    """KL(vMF(mu_p, p) || vMF(mu_q, q)) = B(p, q) + A(p) q |mu_p - mu_q|^2 / 2, both terms >= 0.

    Means (..., d), concentrations (...), all broadcast; the batch shape. Differentiable in all four. At k = inf the
    distribution is a point mass: infinite, but 0 between equal ones.
    """
    dim = mean_p.shape[-1]
    _check_dim(dim)
    dtype, (mean_p, p, mean_q, q) = _as_float(mean_p, concentration_p, mean_q, concentration_q)
    p, q = torch.broadcast_tensors(p, q)
    angle = 0.5 * (mean_p - mean_q).square().sum(-1)
    far = torch.where(torch.isinf(q), 0.0, q)  # the divergence is infinite without inf * 0
    value = _apply_pair("divergence", dim, p, q) + _apply("mean_resultant", dim, p) * far * angle
    between_points = torch.where(angle == 0, 0.0, math.inf)
    return torch.where((p == math.inf) & (q == math.inf), between_points, value).to(dtype)


def log_prob(x: Tensor, mean_direction: Tensor, concentration: Tensor | float) -> Tensor:
    """log C_d(k) + k mu.x for unit vectors x (..., d) and mu (..., d), k (...); the broadcast batch shape.

    k = inf is a point mass: see point_mass.
    """
    dim = x.shape[-1]
    _check_dim(dim)
    dtype, (x, mean, k) = _as_float(x, mean_direction, concentration)
    value = _apply("log_normalizer", dim, k) + k * (x * mean).sum(-1)
    roundings = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.where(k == math.inf, point_mass(x, mean, roundings), value).to(dtype)


def point_mass(x: Tensor, mean_direction: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The log density at k = inf: inf where no coordinate of x is off by more than four roundings of dtype, else -inf.

    Four, because the direction of a single point is that point divided by its length.
    """
    furthest = (x - mean_direction).abs().amax(-1)
    inside = torch.where(furthest <= 4 * torch.finfo(dtype or x.dtype).eps, math.inf, -math.inf)
    return torch.where(furthest.isnan(), math.nan, inside).to(x.dtype)


def fit(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Maximum likelihood from unit vectors x (n, d) with weights (n,) of any scale (Banerjee et al. 2005, section 3).

    The mean direction (d,) is sum w x / |sum w x|, the concentration () solves A_d(k) = |sum w x| / sum w. Where the
    resultant is zero: e1 and 0.
    """
    dim = x.shape[-1]
    _check_dim(dim)
    wide = x.double()
    w = torch.ones_like(wide[:, 0]) if weights is None else weights.double()
    total = w.sum()
    resultant = (w / total) @ wide
    length = torch.linalg.vector_norm(resultant)
    first = torch.zeros_like(resultant)
    first[0] = 1.0
    direction = torch.where(length > 0, resultant / torch.where(length > 0, length, 1.0), first)
    k = _apply("concentration_from_resultant", dim, length.clamp(max=1.0))
    return direction.to(x.dtype), k.to(x.dtype)


def mixture_log_prob(
    x: Tensor,
    mean_directions: Tensor,
    concentrations: Tensor,
    log_weights: Tensor,
    *,
    return_responsibilities: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log sum_j exp(log w_j) vMF(x; mu_j, k_j) for x (n, d), mu (K, d), k (K,), log w (K,): (n,).

    With return_responsibilities also the posterior over the components, (n, K).
    """
    dim = x.shape[-1]
    _check_dim(dim)
    dtype, (x, mean, k, log_w) = _as_float(x, mean_directions, concentrations, log_weights)
    logits = (x @ mean.T) * k + (log_w + _apply("log_normalizer", dim, k))
    total = torch.logsumexp(logits, -1)
    if not return_responsibilities:
        return total.to(dtype)
    return total.to(dtype), torch.softmax(logits, -1).to(dtype)
