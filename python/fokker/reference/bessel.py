"""log I_v(x), log K_v(x), their exponentially scaled forms and the ratios I_{v+1}/I_v, K_{v+1}/K_v, in plain PyTorch.

Real order v >= 0, x >= 0, elementwise with broadcasting; a negative or nan input gives nan, and so do v = x = inf where
the limit depends on the path. The definitions are those of DLMF 10.25 and 10.27. All arithmetic is float64: float32,
float16 and bfloat16 inputs are exact in float64, and the result is rounded once to their dtype (a Python number is
rounded to the dtype of the tensor beside it first). Integers give the default dtype, complex numbers a TypeError.

Three regimes meet: hypot(v, x) >= 30 (_bessel_debye); below it x >= 2 for I and x >= 1 for K (_bessel_middle); and
smaller x (_bessel_small for I, _bessel_temme for K).

Accuracy in float64, v <= 1e7, x <= 1e300: log_iv, log_kv, log_kve within 4e-15 max(|f|, 1), next to their zeros too;
log_ive and the ratios within 4e-15 |f|.

Derivatives in v and in x are analytic in every regime and never go through `where`: first and second derivatives work
in reverse and forward mode and under torch.func; third derivatives raise NotImplementedError. Under
torch.compile(fullgraph=True) forward and backward trace (slowly: every series is unrolled), torch.func does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from fokker.reference import _bessel_debye as debye
from fokker.reference import _bessel_middle as middle
from fokker.reference import _bessel_small as small
from fokker.reference import _bessel_temme as temme

__all__ = ["bessel_grad", "bessel_hess", "iv_ratio", "kv_ratio", "log_iv", "log_ive", "log_kv", "log_kve"]

FUNCTIONS = ("log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "kv_ratio")
_INF, _NAN = float("inf"), float("nan")


def _by_regime(name: str, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The derivatives of one order at finite v >= 0, x > 0: each regime runs on inputs made safe, one is taken."""
    second_kind, scaled = name in ("log_kv", "log_kve", "kv_ratio"), name.endswith("e")
    far = torch.hypot(v, x) >= 30.0
    near_zero = ~far & (x < (1.0 if second_kind else 2.0))
    between = ~(far | near_zero)
    at_far = torch.where(far, v, 0.0), torch.where(far, x, 50.0)
    at_mid = torch.where(between, v, 0.0), torch.where(between, x, 3.0)
    at_low = torch.where(near_zero, v, 0.0), torch.where(near_zero, x, 0.5)
    if name.endswith("ratio"):
        a = debye.ratio(second_kind, order, *at_far)
        if second_kind:
            b, c = middle.ratio_k(order, *at_mid), temme.ratio_k(order, *at_low)
        else:
            b, c = middle.ratio_i(order, *at_mid), middle.ratio_i(order, *at_low)
    else:
        a = debye.log_function(second_kind, scaled, order, *at_far)
        if second_kind:
            b, c = middle.log_k(scaled, order, *at_mid), temme.log_k(scaled, order, *at_low)
        else:
            b, c = middle.log_i(scaled, order, *at_mid), small.log_i(scaled, order, *at_low)
    return tuple(torch.where(far, p, torch.where(between, q, s)) for p, q, s in zip(a, b, c, strict=True))


Limit = float | Tensor


def _limits(name: str, order: int, v: Tensor, x: Tensor) -> list[tuple[Limit, Limit, Limit, Limit]]:
    """Limits of the derivatives of one order: at x = 0 with v = 0, x = 0 with v > 0, x = inf, v = inf."""
    scaled = name.endswith("e")
    if name in ("log_iv", "log_ive"):
        if order == 0:
            return [(0.0, -_INF, -_INF if scaled else _INF, -_INF)]
        if order == 1:
            return [(-_INF, -_INF, 0.0, -_INF), (-1.0, _INF, 0.0, _INF) if scaled else (0.0, _INF, 1.0, _INF)]
        curvature = -small.trigamma(v + 1.0)
        return [(curvature, curvature, 0.0, 0.0), (_INF, _INF, 0.0, 1.0 / x), (0.5, -_INF, 0.0, -_INF)]
    if name in ("log_kv", "log_kve"):
        if order == 0:
            return [(_INF, _INF, -_INF, _INF)]
        if order == 1:
            return [(0.0, _INF, 0.0, _INF), (-_INF, -_INF, 0.0 if scaled else -1.0, -_INF)]
        return [(_INF, small.trigamma(v), 0.0, 0.0), (0.0, -_INF, 0.0, -1.0 / x), (_INF, _INF, 0.0, _INF)]
    if name == "iv_ratio":
        if order == 0:
            return [(0.0, 0.0, 1.0, 0.0)]
        half = 0.5 / (v + 1.0)
        if order == 1:
            return [(0.0, 0.0, 0.0, 0.0), (half, half, 0.0, 0.0)]
        mixed = -half / (v + 1.0)
        return [(0.0, 0.0, 0.0, 0.0), (mixed, mixed, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)]
    if order == 0:
        return [(_INF, _INF, 1.0, _INF)]
    if order == 1:
        return [(_INF, _INF, 0.0, 2.0 / x), (-_INF, -_INF, 0.0, -_INF)]
    curvature = torch.where(v <= 0.5, _INF, 0.0)
    return [(_INF, curvature, 0.0, 0.0), (-_INF, -_INF, 0.0, -2.0 / x / x), (_INF, _INF, 0.0, _INF)]


def _evaluate(name: str, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The derivatives of one order everywhere: (f,), (f_v, f_x) or (f_vv, f_vx, f_xx)."""
    safe_v = torch.where(torch.isfinite(v), v, 1.0)
    safe_x = torch.where(torch.isfinite(x) & (x > 0), x, 1.0)
    invalid = torch.isnan(v) | torch.isnan(x) | (v < 0) | (x < 0)
    # Only log_ive has one limit when both are infinite.
    both = torch.isinf(v) & torch.isinf(x)
    at_both = -_INF if name == "log_ive" and order == 0 else _NAN
    out = []
    values = _by_regime(name, order, torch.clamp(safe_v, min=0.0), safe_x)
    for value, limits in zip(values, _limits(name, order, v, x), strict=True):
        zero_zero, x_zero, x_inf, v_inf = limits
        value = torch.where(torch.isinf(v), v_inf, value)
        value = torch.where(torch.isinf(x), x_inf, value)
        value = torch.where(x == 0, torch.where(v == 0, zero_zero, x_zero), value)
        value = torch.where(both, at_both, value)
        out.append(torch.where(invalid, _NAN, value))
    return tuple(out)


class _Derivatives(torch.autograd.Function):
    """The derivatives of one order of a named function; their own derivatives are those of the next order."""

    @staticmethod
    def forward(name: str, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return _evaluate(name, order, v, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.order, v, x = inputs
        ctx.save_for_backward(v, x)
        ctx.save_for_forward(v, x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[None, None, Tensor | None, Tensor | None]:
        v, x = ctx.saved_tensors
        nxt = _next_order(ctx.name, ctx.order, v, x)
        # Output i has i derivatives in x; an infinite slope must not meet an absent cotangent or an unwanted gradient.
        terms_v = [g * nxt[i] for i, g in enumerate(cotangents) if g is not None]
        terms_x = [g * nxt[i + 1] for i, g in enumerate(cotangents) if g is not None]
        grad_v = sum(terms_v[1:], terms_v[0]) if terms_v and ctx.needs_input_grad[2] else None
        grad_x = sum(terms_x[1:], terms_x[0]) if terms_x and ctx.needs_input_grad[3] else None
        return None, None, grad_v, grad_x


class _TransformableDerivatives(_Derivatives):
    """With forward mode and vmap. (Apart, because torch.compile traces no Function that has a jvp or a vmap.)"""

    @staticmethod
    def jvp(ctx: Any, _name: None, _order: None, v_t: Tensor | None, x_t: Tensor | None) -> tuple[Tensor | None, ...]:
        v, x = ctx.saved_tensors
        nxt = _next_order(ctx.name, ctx.order, v, x)
        out: list[Tensor | None] = []
        # Torch turns forward mode off inside jvp; an outer level of it must see these products, or it gets a silent 0.
        with _set_fwd_grad_enabled(True):
            for i in range(ctx.order + 1):
                terms = [t * d for t, d in ((v_t, nxt[i]), (x_t, nxt[i + 1])) if t is not None]
                out.append(sum(terms[1:], terms[0]) if terms else None)
        return tuple(out)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], name: str, order: int, v: Tensor, x: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        def to_front(t: Tensor, dim: int | None) -> Tensor:
            return t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)

        out = _TransformableDerivatives.apply(name, order, to_front(v, in_dims[2]), to_front(x, in_dims[3]))
        return out, (0,) * (order + 1)


def _apply(name: str, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    function = _Derivatives if torch.compiler.is_compiling() else _TransformableDerivatives
    return function.apply(name, order, v, x)


def _next_order(name: str, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    if order >= 2:
        raise NotImplementedError(f"fokker.reference.bessel: the third derivatives of {name} are not available")
    return _apply(name, order + 1, v, x)


def _result_dtype(v: Tensor | float, x: Tensor | float) -> torch.dtype:
    """Torch's promotion; integers and Python numbers alone give the default dtype."""
    tensors = [t for t in (v, x) if isinstance(t, Tensor)]
    for name, value in (("v", v), ("x", x)):
        if isinstance(value, complex) or (isinstance(value, Tensor) and value.is_complex()):
            raise TypeError(f"{name} must be real, got {value.dtype if isinstance(value, Tensor) else 'complex'}")
    if not tensors:
        return torch.get_default_dtype()
    # result_type only where it is needed: torch.compile does not trace it.
    dtype = torch.result_type(v, x) if len({t.dtype for t in tensors}) > 1 else tensors[0].dtype
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _as_pair(v: Tensor | float, x: Tensor | float) -> tuple[Tensor, Tensor, torch.dtype]:
    """v and x broadcast, rounded to the result's dtype and taken to float64. A 0-dim CPU tensor goes to any device."""
    dtype = _result_dtype(v, x)
    tensors = [t for t in (v, x) if isinstance(t, Tensor)]
    device = next((t.device for t in tensors if t.dim() > 0 or t.device.type != "cpu"), torch.device("cpu"))
    for name, t in (("v", v), ("x", x)):
        if isinstance(t, Tensor) and t.dim() > 0 and t.device != device:
            raise TypeError(f"v and x must be on one device, got {name} on {t.device} beside {device}")
    # A number is filled in on the device: copying it there would break a CUDA graph capture.
    f64 = torch.float64
    numbers = [t if isinstance(t, Tensor) else torch.full((), t, dtype=f64, device=device) for t in (v, x)]
    pair = [t.to(device, dtype).to(f64) for t in numbers]
    try:
        left, right = torch.broadcast_tensors(*pair)
    except RuntimeError:
        raise ValueError(f"v {tuple(pair[0].shape)} and x {tuple(pair[1].shape)} must broadcast") from None
    return left, right, dtype


def _call(name: str, order: int, v: Tensor | float, x: Tensor | float) -> tuple[Tensor, ...]:
    v, x, dtype = _as_pair(v, x)
    return tuple(t.to(dtype) for t in _apply(name, order, v, x))


def _check_name(name: str) -> None:
    if name not in FUNCTIONS:
        raise ValueError(f"name must be one of {', '.join(FUNCTIONS)}, got {name!r}")


def log_iv(v: Tensor | float, x: Tensor | float) -> Tensor:
    """log I_v(x), I_v(x) = (x/2)^v sum_k (x^2/4)^k / (k! Gamma(v + k + 1)) (DLMF 10.25.2)."""
    return _call("log_iv", 0, v, x)[0]


def log_ive(v: Tensor | float, x: Tensor | float) -> Tensor:
    """log(e^-x I_v(x)): negative everywhere but at v = x = 0, relatively accurate."""
    return _call("log_ive", 0, v, x)[0]


def log_kv(v: Tensor | float, x: Tensor | float) -> Tensor:
    """log K_v(x), K_v(x) = int_0^inf exp(-x cosh t) cosh(v t) dt (DLMF 10.32.9)."""
    return _call("log_kv", 0, v, x)[0]


def log_kve(v: Tensor | float, x: Tensor | float) -> Tensor:
    """log(e^x K_v(x))."""
    return _call("log_kve", 0, v, x)[0]


def iv_ratio(v: Tensor | float, x: Tensor | float) -> Tensor:
    """I_{v+1}(x) / I_v(x), in [0, 1)."""
    return _call("iv_ratio", 0, v, x)[0]


def kv_ratio(v: Tensor | float, x: Tensor | float) -> Tensor:
    """K_{v+1}(x) / K_v(x), above 1."""
    return _call("kv_ratio", 0, v, x)[0]


def bessel_grad(name: str, v: Tensor | float, x: Tensor | float) -> tuple[Tensor, Tensor]:
    """(d/dv, d/dx) of the named function, differentiable once more. ValueError for an unknown name.

    At v = 0, d/dv is 0 for log K (even in v) and -K_0/I_0 for log I (DLMF 10.38). At x = 0, x = inf and v = inf these
    are the limits.
    """
    _check_name(name)
    d_v, d_x = _call(name, 1, v, x)
    return d_v, d_x


def bessel_hess(name: str, v: Tensor | float, x: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """(d2/dv2, d2/dvdx, d2/dx2) of the named function. Differentiating them raises NotImplementedError."""
    _check_name(name)
    d_vv, d_vx, d_xx = _call(name, 2, v, x)
    return d_vv, d_vx, d_xx
