"""Entropic optimal transport between point clouds: Sinkhorn's iteration on fused log-sums, gradients by envelope."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._kde_arguments import Call, arrange
from ._op import _is_compiling
from ._pairwise_arguments import clouds, positive, readable, takes_reference, transformed
from ._pairwise_tiles import refused
from .reference import pairwise as reference

__all__ = ["Transport", "sinkhorn"]


class Transport(NamedTuple):
    """What `sinkhorn` returns."""

    #: the transport cost, or the divergence: ``(...)``
    value: Any
    #: f ``(..., N)``
    x_potential: Any
    #: g ``(..., M)``
    y_potential: Any
    #: sum_i |sum_j P_ij - a_i| of the last plan, ``(...)``; inf where epsilon is too small for it to be known
    error: Any
    iterations: int


class _Side:
    """f = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon) for one pair of clouds."""

    def __init__(self, x: Tensor, y: Tensor, b: Tensor) -> None:
        self.x, self.y = x, y
        self.log_b = torch.where(b == 0, -torch.inf, torch.log(torch.where(b == 0, 1.0, b)))

    def __call__(self, g: Tensor, epsilon: Any) -> Tensor:
        h = epsilon**0.5
        c: Call = arrange("sinkhorn", self.x, self.y, h, None, "gaussian", 1.0, False, "highest", ("gaussian",))
        return -epsilon * c.with_bias(self.log_b + g / epsilon).sums(0)[0]


def _semidual(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, g: Tensor) -> Tensor:
    return (a * _Side(x, y, b)(g, epsilon)).sum(-1) + (b * g).sum(-1)


class _Value(torch.autograd.Function):
    """<a, f> + <b, g> with f the best for g, as a function of the clouds, the weights and epsilon at a fixed g."""

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        ctx.save_for_backward(*arguments)
        return _semidual(*arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = ctx.needs_input_grad[:5]
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors[:5], needed, strict=True)]
            value = _semidual(*leaves, ctx.saved_tensors[5])
            wanted = [t for t, n in zip(leaves, needed, strict=True) if n]
            found = iter(torch.autograd.grad(value, wanted, grad.detach(), allow_unused=True))
        slopes = [next(found) if n else None for n in needed]
        sources = (*ctx.saved_tensors, grad)
        return *refused(
            "sinkhorn has a first derivative only: a second one would miss the potentials'", slopes, sources
        ), None


class _Problem:
    """One transport problem and its iteration."""

    def __init__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, same: bool, lost: Tensor) -> None:
        self.x, self.y, self.a, self.b, self.same, self.lost = x, y, a, b, same, lost

    def solve(self, ladder: list[float], epsilon: float, limit: int, tolerance: float) -> tuple[Tensor, ...]:
        """(f, g, the marginal's error, iterations), f being the best for g."""
        to_f, to_g = _Side(self.x, self.y, self.b), _Side(self.y, self.x, self.a)
        f, g = torch.zeros_like(self.a), torch.zeros_like(self.b)
        watched = readable(f) or (not _is_compiling() and not transformed())
        every = 1 if f.is_cpu else 10  # a look at the error holds a GPU up
        f, error, count = to_f(g, ladder[0] if ladder else epsilon), torch.full_like(f[:, 0], torch.inf), 0
        for count in range(1, limit + 1):
            step = ladder[count - 1] if count <= len(ladder) else epsilon
            after = ladder[count] if count < len(ladder) else epsilon
            if self.same:  # one potential; the mean of two steps contracts where the step alone oscillates
                f = 0.5 * (f + to_f(f, step))
                g, new = f, to_f(f, after)
            else:
                g = to_g(f, step)
                new = to_f(g, after)
            # the plan of (f, g) has rows a exp((f - new) / epsilon)
            settled = count > len(ladder)
            if settled:
                off = torch.expm1((f - new) / epsilon).abs()
                error = torch.where(self.lost, torch.inf, torch.where(self.a == 0, 0.0, self.a * off).sum(-1))
            if not self.same:
                f = new
            if tolerance > 0 and settled and watched and count % every == 0 and not bool((error > tolerance).any()):
                break
        return (f if not self.same else new), g, error, count

    def value(self, g: Tensor, epsilon: Tensor) -> Tensor:
        """The cost, differentiable once."""
        arguments = (self.x, self.y, self.a, self.b, epsilon, g.detach())
        if _is_compiling() or transformed():
            return _semidual(*arguments)
        return _Value.apply(*arguments)


def sinkhorn(
    x: Any,
    y: Any,
    *,
    epsilon: Any,
    x_weights: Any = None,
    y_weights: Any = None,
    debias: bool = False,
    iterations: int = 1000,
    tolerance: float | None = None,
    scaling: float | None = None,
) -> Transport:
    r"""Entropic optimal transport for the cost C = |x - y|^2 / 2 (Cuturi 2013; Peyre and Cuturi 2019).

        OT(x, y) = min over P with marginals a, b of <P, C> + epsilon KL(P | a b^T) = max_{f,g} <a, f> + <b, g>
                   - epsilon (<a b^T, exp((f + g - C) / epsilon)> - 1),
        P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon),

    by f_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon) and likewise g, each one fused log-sum. ``debias`` gives
    OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2, never negative and 0 for equal clouds (Feydy et al. 2019).

    Args:
        x: ``(..., N, d)``.
        y: ``(..., M, d)``.
        epsilon: positive: a number, or a 0-d tensor to differentiate in.
        x_weights: a ``(..., N)``, >= 0, scaled to sum to one; None for equal ones.
        y_weights: b ``(..., M)``, likewise.
        debias: the divergence instead of the cost.
        iterations: at most so many, of one f and one g each.
        tolerance: stop when sum_i |sum_j P_ij - a_i| is below it; None for 1e-9 in float64, 1e-5 in float32; 0 for all
            iterations. Under torch.compile and transforms all are made.
        scaling: in (0, 1), say 0.7: start with epsilon = the squared diameter and multiply by it each iteration, which
            saves iterations where the clouds lie far apart for epsilon; None starts with epsilon.

    Returns:
        `Transport`: value ``(...)``, the potentials f, g (with ``debias`` minus those of the clouds with themselves),
        the marginal's error and the iterations made; nothing is raised when the tolerance is not met. Potentials are
        kept in float64 inside; with epsilon below 1e-15 of the squared diameter the plan is their rounding, its error
        is given as inf and all iterations are made. Memory O(N + M).

        The value is differentiable once in x, y, weights and epsilon, by the envelope theorem: the gradient at fixed
        potentials, exact at convergence (error of the order of that of the potentials; a second derivative is an
        error). Weights' gradients are those along the simplex. The potentials carry no gradient.

    Raises:
        ValueError: shapes that do not fit, an empty cloud, epsilon not positive, weights that are negative or all zero,
            iterations < 1, scaling outside (0, 1).
        TypeError: complex, sparse or unlike devices.
    """
    c = clouds("sinkhorn", {"x": x, "y": y}, {"x_weights": x_weights, "y_weights": y_weights})
    if iterations < 1:
        raise ValueError(f"sinkhorn: iterations must be at least 1, got {iterations}")
    if scaling is not None and not 0 < scaling < 1:
        raise ValueError(f"sinkhorn: scaling must be in (0, 1), got {scaling}")
    given = isinstance(epsilon, Tensor)
    if given and epsilon.dim():
        raise ValueError(f"sinkhorn: epsilon must be a number or a 0-d tensor, got shape {tuple(epsilon.shape)}")
    if not given or readable(epsilon):
        positive("sinkhorn", "epsilon", epsilon)
    z, w = c.points, (c.mass(0), c.mass(1))
    device = z[0].device
    eps = epsilon.double().to(device) if given else torch.tensor(float(epsilon), dtype=torch.float64, device=device)
    if tolerance is None:
        tolerance = 1e-9 if z[0].dtype is torch.float64 else 1e-5
    span = _span(z[0], z[1])
    # exponents (f + g - C) / epsilon that are all rounding
    lost = eps.detach() < 2.0**-50 * span
    ladder = _ladder(span, eps, scaling)
    fixed = eps.detach() if given else float(epsilon)
    if takes_reference() and not debias:
        value, f, g = reference.sinkhorn(*z, *w, eps, iterations)
        error = torch.zeros_like(value)
        return Transport(*(c.restore(t) for t in (value, f.detach(), g.detach(), error)), iterations)
    pairs = [_Problem(*z, *w, False, lost)]
    if debias:
        pairs += [_Problem(z[k], z[k], w[k], w[k], True, lost) for k in (0, 1)]
    with torch.no_grad():  # not a decorator of the method: torch.compile does not take that
        solved = [p.solve(ladder, fixed, iterations, tolerance) for p in pairs]
    value = pairs[0].value(solved[0][1], eps)
    f, g, error, count = solved[0]
    if debias:
        value = value - 0.5 * sum(p.value(s[1], eps) for p, s in zip(pairs[1:], solved[1:], strict=True))
        f, g = f - solved[1][0], g - solved[2][0]
        error, count = torch.stack([s[2] for s in solved]).amax(0), max(s[3] for s in solved)
    return Transport(c.restore(value), c.restore(f), c.restore(g), c.restore(error), count)


@torch.no_grad()
def _span(x: Tensor, y: Tensor) -> Tensor:
    """The squared diagonal of a box around both clouds, (B,) float64."""
    z = torch.cat([x, y], 1)
    return (z.amax(1) - z.amin(1)).double().square().sum(-1)


def _ladder(span: Tensor, epsilon: Tensor, scaling: float | None) -> list[float]:
    if scaling is None:
        return []
    step, last = float(span.amax()), float(epsilon)
    found = []
    while step > last:
        found.append(step)
        step *= scaling
    return found
