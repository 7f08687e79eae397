"""Exact von Mises-Fisher samples and their implicit gradient, in plain PyTorch: what the fused kernels compute.

A sample of vMF(mu, k) on the unit sphere of R^d is x = w mu + sqrt(1 - w^2) xi, with w = mu.x of density proportional
to (1 - t^2)^((d-3)/2) exp(k t) and xi uniform among the unit vectors orthogonal to mu.

- w: Wood's rejection from a beta variate (Wood 1994, after Ulrich 1984), at d = 3 the inverse distribution function;
  noise from stream VMF_REJECTION, attempt a in the blocks 2 a and 2 a + 1.
- xi: normals z_1 .. z_{d-1} of stream VMF_TANGENT (element = coordinate, z_0 is not used), normalised and reflected by
  H = I - u u' / (1 + |mu_0|), u = mu + sign(mu_0) e_0, which takes e_0 to -+mu without a special direction.

So a sample is a function of (seed, step, sample id) alone. w and 1 - w are float64 inside for every dtype.

Gradient. In k at a fixed probability F(w) (Figurnov, Mohamed, Mnih 2018): dw/dk = -(1/f(w)) int_{-1}^w (t - A) f(t) dt
with A = E w, so dx/dk = dw/dk (mu - w / sqrt(1 - w^2) xi). In mu by the rotation that carries mu:
dx = w dmu - (x.dmu) mu, so grad_mu = w g - (g.mu) x, which is tangent at mu. It is the derivative of rotated samples,
not of the reflection H (which jumps at mu_0 = 0): an expectation has the same gradient, single samples differ by a turn
about mu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fokker.reference import random

__all__ = ["cosine_gradient", "cosines", "rsample", "sample", "sample_backward", "sample_rows"]

MAX_ATTEMPTS = 1024  # an attempt succeeds with probability > 0.65: never reached
DROP = 40.0  # tails are cut where the density has fallen by exp(-40)


def cosines(dim: int, concentration: Tensor, sample_ids: Tensor, seed: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """w = mu.x and 1 - w of one sample for each element of concentration and sample_ids, both (n,); float64.

    k = inf gives w = 1; negative or nan k gives nan. Not differentiable. Source: Wood, Commun. Statist. Simul. 23
    (1994); for the beta variate Devroye, Non-Uniform Random Variate Generation (1986), chapter IX.4.
    """
    k = concentration.double()
    k = torch.where(k >= 0, k, torch.nan)
    n = dim - 1

    def uniforms(ids: Tensor, attempt: int) -> tuple[Tensor, ...]:
        u = random.uniform(seed, step, random.Stream.VMF_REJECTION, ids, 4, 4 * attempt, dtype=torch.float64)
        return u.clamp(max=1 - 2.0**-53).unbind(-1)

    if dim == 3:
        u = uniforms(sample_ids, 0)[0]
        one_minus_w = torch.where(k < 1e-300, 2 * u, -torch.log1p(u * torch.expm1(-2 * k)) / k).clamp(max=2.0)
        return 1 - one_minus_w, one_minus_w

    root = torch.hypot(2 * k, torch.full_like(k, n))
    b = n / (2 * k + root)
    one_minus_b = torch.where(torch.isinf(k), 1.0, (2 * k + 2 * k * (2 * k / (root + n))) / (2 * k + root))
    w, one_minus_w = torch.full_like(k, torch.nan), torch.full_like(k, torch.nan)
    pending = torch.arange(k.numel(), device=k.device)
    for attempt in range(MAX_ATTEMPTS):
        if not pending.numel():
            break
        u, v, test, _ = uniforms(sample_ids[pending], attempt)
        # y = 2 z - 1 for z ~ Beta(n/2, n/2)
        power = 2 * u.log() / (n - 1) if n > 1 else torch.full_like(u, -torch.inf)
        radius = (-torch.expm1(power)).sqrt()
        rest = power.exp() / (1 + radius)  # 1 - radius
        sine, cosine = (torch.pi * v).sin(), (torch.pi * v).cos()  # of half the angle
        y = radius * (cosine - sine) * (cosine + sine)
        one_plus_y, one_minus_y = rest + 2 * radius * cosine**2, rest + 2 * radius * sine**2
        denominator = one_minus_y + b[pending] * one_plus_y
        s = one_minus_b[pending] * y / denominator
        accepted = ~(test.log() > n * (torch.log1p(s) - s))  # a nan is accepted
        done = pending[accepted]
        w[done] = ((one_minus_y - b[pending] * one_plus_y) / denominator)[accepted]
        one_minus_w[done] = (2 * b[pending] * one_plus_y / denominator)[accepted].clamp(max=2.0)
        pending = pending[~accepted]
    return w, one_minus_w


def _tail(dim: int, k: Tensor, w: Tensor, one_minus_w: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """int f(t) / f(w) dt and int |t - w| f(t) / f(w) dt from w = cos(phi_w) to side = +-1, over 2 sin(phi_w).

    In t = cos(phi), phi = phi_w - 2 side delta the integrand is smooth for every d >= 2; 4 panels of 24 Gauss nodes.
    """
    plus = torch.where(one_minus_w < 1, 2 - one_minus_w, 1 + w)
    half_sine, half_cosine = (one_minus_w / 2).sqrt(), (plus / 2).sqrt()
    sine = 2 * half_sine * half_cosine
    end = torch.where(side > 0, torch.atan2(half_sine, half_cosine), torch.atan2(half_cosine, half_sine))

    def terms(delta: Tensor) -> tuple[Tensor, Tensor]:
        s, c = delta.sin(), delta.cos()
        distance = 2 * s * (sine * c - side * w * s)  # |t - w|
        ratio = (-2 * s * s - side * (w / sine) * (2 * s * c)).clamp(min=-1.0)  # sin(phi) / sin(phi_w) - 1
        power = (dim - 2) * torch.log1p(ratio) if dim > 2 else torch.zeros_like(ratio)
        return distance, power + side * k * distance

    low, high = torch.zeros_like(end), end
    for _ in range(40):  # the density falls from its one maximum on: bisection finds the cut, or the pole
        middle = (low + high) / 2
        inside = terms(middle)[1] > -DROP
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    mass, moment = torch.zeros_like(end), torch.zeros_like(end)
    for panel in range(4):
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            distance, log_density = terms(high * ((panel + (1 + node) / 2) / 4))
            density = log_density.exp() * (high * weight / 8)
            mass, moment = mass + density, moment + density * distance
    return mass, moment


def _mean(dim: int, k: Tensor) -> tuple[Tensor, Tensor]:
    """A = E w and 1 - A, from integrals on both sides of the maximum of the density of the angle."""
    n = dim - 2
    root = torch.hypot(torch.full_like(k, n), 2 * k)
    if n:
        w, one_minus_w = 2 * k / (n + root), (n + n * (n / (root + 2 * k))) / (n + root)
        above, below = (_tail(dim, k, w, one_minus_w, torch.full_like(k, side)) for side in (1.0, -1.0))
    else:  # the maximum is at w = 1: start at a point with a tail on either side instead
        one_minus_w = 1 / (1 + k)
        w = 1 - one_minus_w
        above, below = (_tail(dim, k, w, one_minus_w, torch.full_like(k, side)) for side in (1.0, -1.0))
    shift = (above[1] - below[1]) / (above[0] + below[0])
    return w + shift, one_minus_w - shift


def cosine_gradient(
    dim: int,
    concentration: Tensor,
    mean: Tensor | None,
    one_minus_mean: Tensor | None,
    w: Tensor,
    one_minus_w: Tensor,
) -> Tensor:
    """dw/dk at a fixed probability: -(1/f(w)) int_{-1}^w (t - A) f(t) dt, f(t) ~ (1 - t^2)^((d-3)/2) exp(k t).

    All tensors of one shape; mean = A(dim, k) and one_minus_mean = 1 - A (None: computed here). Positive, 0 at w = +-1
    and k = inf, nan for a negative or nan k. Computed in float64 on the side of w that leaves A out, where the
    integrand keeps its sign. Not differentiable. Source: Figurnov, Mohamed and Mnih, NeurIPS 2018.
    """
    k, w64, minus = concentration.double(), w.double(), one_minus_w.double()
    valid, inside = (k >= 0) & (minus >= 0) & (w64 >= -1), (minus > 0) & (minus < 2) & torch.isfinite(k)
    safe_k = torch.where(valid & inside, k, 1.0)
    near_one = minus < 0.5  # of w and 1 - w the smaller one is exact
    w64 = torch.where(valid & inside, torch.where(near_one, 1 - minus, w64), 0.0)
    minus = torch.where(valid & inside, torch.where(near_one, minus, 1 - w64), 1.0)
    if mean is None or one_minus_mean is None:
        a, c = _mean(dim, safe_k)
    else:
        a, c = mean.double(), one_minus_mean.double()
    deviation = torch.where(a > 0.5, c - minus, w64 - a)  # w - A
    mass, moment = _tail(dim, safe_k, w64, minus, torch.where(deviation >= 0, 1.0, -1.0).to(k))
    sine_squared = minus * torch.where(minus < 1, 2 - minus, 1 + w64)
    value = 2 * sine_squared.sqrt() * (deviation.abs() * mass + moment)
    return torch.where(valid, torch.where(inside, value, 0.0), torch.nan).to(w.dtype)


def sample_backward(grad: Tensor, x: Tensor, mean: Tensor, w: Tensor, one_minus_w: Tensor) -> tuple[Tensor, Tensor]:
    """Vector-Jacobian product of each sample x (n, d): grad_mean (n, d), and grad_cosine (n,) = grad_k / (dw/dk).

    mean is (batch, d), row i using i mod batch. grad_mean = w g - (g.mu) x;
    grad_cosine = g.mu - w g.(x - w mu) / (1 - w^2), which is 0 where w = +-1.
    """
    mu = mean.double()[torch.arange(x.shape[0], device=x.device) % mean.shape[0]]
    g, x64, c, rest = grad.double(), x.double(), w.double(), one_minus_w.double()
    along = (g * mu).sum(-1)
    across = (g * (x64 - mu)).sum(-1) + rest * along  # g.(x - w mu): near w = 1 the digits are in x - mu
    square = rest * (2 - rest)
    grad_cosine = along - c * across / torch.where(square == 0, 1.0, square)
    grad_cosine = torch.where(square == 0, 0.0, grad_cosine)
    return (c[:, None] * g - along[:, None] * x64).to(x.dtype), grad_cosine.to(w.dtype)


def _draw(
    mean: Tensor, concentration: Tensor, sample_ids: Tensor | None, first_id: int, seed: int, step: int, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    dim, dtype, rows = mean.shape[-1], mean.dtype, torch.arange(n, device=mean.device)
    ids = rows + first_id if sample_ids is None else sample_ids
    mu, k = mean.double()[rows % mean.shape[0]], concentration[rows % concentration.shape[0]]
    w, one_minus_w = cosines(dim, k, ids, seed, step)
    z = random.normal(seed, step, random.Stream.VMF_TANGENT, ids, dim, dtype=dtype).double()
    z[:, 0] = 0.0
    z[:, 1] = torch.where((z == 0).all(-1), 1.0, z[:, 1])  # float32, d = 2: once in 2^25
    tangent = z / z.norm(dim=-1, keepdim=True)
    sign = torch.where(mu[:, :1] >= 0, 1.0, -1.0).to(mu)
    reflect = mu + sign * torch.nn.functional.one_hot(torch.zeros(1, dtype=torch.int64, device=mu.device), dim)
    tangent = tangent - reflect * (reflect * tangent).sum(-1, keepdim=True) / (1 + mu[:, :1].abs())
    sine = (one_minus_w * (2 - one_minus_w)).sqrt()
    x = w[:, None] * mu + sine[:, None] * tangent
    return x.to(dtype), w.to(dtype), one_minus_w.to(dtype)


def _rows_gradient(k: Tensor, every: Tensor, x: Tensor, w: Tensor, one_minus_w: Tensor) -> Tensor:
    usable = (k >= 0) & torch.isfinite(k)
    a, c = _mean(x.shape[-1], torch.where(usable, k, 1.0).double())
    return cosine_gradient(x.shape[-1], k[every], a[every], c[every], w, one_minus_w)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _draw(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], inputs[1], *output)
        ctx.save_for_forward(inputs[0], inputs[1], *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        mean, k, x, w, one_minus_w = ctx.saved_tensors
        rows = torch.arange(x.shape[0], device=x.device)
        to_mean, to_cosine = sample_backward(grad, x, mean, w, one_minus_w)
        to_k = None
        if ctx.needs_input_grad[1]:
            every = rows % k.shape[0]
            to_k = torch.zeros_like(k).index_add(0, every, to_cosine * _rows_gradient(k, every, x, w, one_minus_w))
        to_mean = torch.zeros_like(mean).index_add(0, rows % mean.shape[0], to_mean)
        return to_mean, to_k, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, mean_t: Tensor | None, k_t: Tensor | None, *unused: Any) -> tuple[Tensor, None, None]:
        mean, k, x, w, one_minus_w = ctx.saved_tensors
        rows = torch.arange(x.shape[0], device=x.device)
        mu, out = mean[rows % mean.shape[0]], torch.zeros_like(x)
        if mean_t is not None:
            turn = mean_t[rows % mean.shape[0]]
            out = out + w[:, None] * turn - (x * turn).sum(-1, keepdim=True) * mu
        if k_t is not None:
            every = rows % k.shape[0]
            derivative = _rows_gradient(k, every, x, w, one_minus_w) * k_t[every]
            square = one_minus_w * (2 - one_minus_w)
            across = (x - mu) + one_minus_w[:, None] * mu  # x - w mu
            slope = torch.where(square == 0, 0.0, w / torch.where(square == 0, 1.0, square))
            out = out + derivative[:, None] * (mu - slope[:, None] * across)
        return out, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], mean: Tensor, k: Tensor, ids: Tensor | None, first_id: int, *rest: int
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # Every member of the batch takes the noise of the same ids, as a loop over them would.
        seed, step, n = rest
        mean, k = (
            t.expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0)
            for t, at in zip((mean, k), in_dims[:2], strict=True)
        )
        batch = max(mean.shape[1], k.shape[1])

        def entries(t: Tensor) -> Tensor:
            return t.expand(info.batch_size, batch, *t.shape[2:]).reshape(-1, *t.shape[2:])

        if ids is None:
            ids = torch.arange(first_id, first_id + n, device=mean.device)
        ids = ids.expand(info.batch_size, n) if in_dims[2] is None else ids.movedim(in_dims[2], 0)
        ids = ids.reshape(info.batch_size, -1, batch).transpose(0, 1).reshape(-1)
        out = _Sample.apply(entries(mean), entries(k), ids, 0, seed, step, n * info.batch_size)
        parts = (t.reshape(-1, info.batch_size, batch, *t.shape[1:]).movedim(1, 0) for t in out)
        return tuple(t.reshape(info.batch_size, n, *t.shape[3:]) for t in parts), (0, 0, 0)


def sample_rows(
    mean: Tensor, concentration: Tensor, sample_ids: Tensor | None, first_id: int, seed: int, step: int, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """n samples (n, d) with w = mu.x and 1 - w, both (n,), in the dtype of mean (float32 or float64).

    mean (batch or 1, d), unit rows; concentration (batch or 1,); sample i takes entry i mod batch of each and the noise
    of sample_ids[i] (int64 (n,)) or first_id + i. x is differentiable once in mean and concentration: see the module.
    """
    return _Sample.apply(mean, concentration, sample_ids, first_id, seed, step, n)


def rsample(
    mean_direction: Tensor,
    concentration: Tensor,
    sample_shape: Sequence[int] = (),
    *,
    seed: int,
    step: int = 0,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """Samples sample_shape + batch + (d,) of vMF(mean_direction, concentration), differentiable once in both.

    mean_direction (..., d): unit vectors, d >= 2; concentration (...): k >= 0 (negative or nan: nan; inf: the mean);
    their leading shapes broadcast to batch. float32 and float64; float16 and bfloat16 go through float32. A sample has
    the noise of its id: sample_ids (int64, broadcast to sample_shape + batch) or its linear index there.
    ValueError for shapes and step, TypeError for dtypes. Gradient and source: see the module.
    """
    if not mean_direction.is_floating_point():
        raise TypeError(f"mean_direction must be floating, got {mean_direction.dtype}")
    if mean_direction.ndim < 1 or mean_direction.shape[-1] < 2:
        raise ValueError(f"mean_direction must be (..., d) with d >= 2, got {tuple(mean_direction.shape)}")
    if sample_ids is not None and sample_ids.dtype != torch.int64:
        raise TypeError(f"sample_ids must be int64, got {sample_ids.dtype}")
    dim, dtype = mean_direction.shape[-1], mean_direction.dtype
    wide = dtype if dtype == torch.float64 else torch.float32
    batch = torch.broadcast_shapes(mean_direction.shape[:-1], concentration.shape)
    shape = torch.Size(sample_shape) + batch
    mean = mean_direction.to(wide).expand(*batch, dim).reshape(-1, dim)
    k = concentration.to(wide).expand(batch).reshape(-1)
    ids = None if sample_ids is None else sample_ids.expand(shape).reshape(-1)
    if shape.numel() == 0:
        return mean_direction.new_empty(*shape, dim)
    return sample_rows(mean, k, ids, 0, seed, step, shape.numel())[0].reshape(*shape, dim).to(dtype)


def sample(mean_direction: Tensor, concentration: Tensor, sample_shape: Sequence[int] = (), **noise: Any) -> Tensor:
    """rsample() without a gradient: the same samples, arguments, shapes and errors."""
    with torch.no_grad():
        return rsample(mean_direction, concentration, sample_shape, **noise)
