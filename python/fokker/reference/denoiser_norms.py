r"""Modulated norms and gated residuals of diffusion transformers in plain PyTorch: what `fokker.denoiser` computes.

    x' = x + gate * branch
    y  = (norm(x') * weight + bias) * (1 + scale) + shift

over rows of the last dimension, norm(v) = (v - mean v) / sqrt(var v + eps) or v / sqrt(mean v^2 + eps). A modulation is
None, a tensor that broadcasts to x, or a pair of such tensors, which are added. Arithmetic is float64 for a float64 x,
else float32, and a result is rounded once: y is computed from x' before that is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

Modulation = Tensor | tuple[Tensor | None, Tensor | None] | None


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What rows of this dtype are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def total(m: Modulation, like: Tensor) -> Tensor | None:
    """A modulation, or the sum of a pair, in the dtype of ``like``."""
    parts = [p.to(like.dtype) for p in (m if isinstance(m, tuple) else (m,)) if p is not None]
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


def normalized(v: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor]:
    """The normalized rows and 1 / their deviation."""
    if norm == "layer":
        v = v - v.mean(-1, keepdim=True)
    rstd = (v.square().mean(-1, keepdim=True) + eps).rsqrt()
    return v * rstd, rstd


def _modulated(v: Tensor, shift: Modulation, scale: Modulation, weight: Modulation, bias: Modulation, eps: float,
               norm: str) -> Tensor:  # fmt: skip
    y, _ = normalized(v, eps, norm)
    w, b, s, t = (total(m, v) for m in (weight, bias, scale, shift))
    if w is not None:
        y = y * w
    if b is not None:
        y = y + b
    if s is not None:
        y = y * (1 + s)
    return y if t is None else y + t


def _gated(x: Tensor, branch: Tensor, gate: Modulation) -> Tensor:
    u = x.to(arithmetic(x.dtype))
    h, g = branch.to(u.dtype), total(gate, u)
    return u + (h if g is None else g * h)


def layer_norm_modulate(
    x: Tensor,
    shift: Modulation = None,
    scale: Modulation = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Layer norm over the last dimension, times 1 + scale, plus shift (adaLN; Peebles and Xie 2023, section 3.2)."""
    return _modulated(x.to(arithmetic(x.dtype)), shift, scale, weight, bias, eps, "layer").to(x.dtype)


def rms_norm_modulate(
    x: Tensor, shift: Modulation = None, scale: Modulation = None, weight: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """RMS norm over the last dimension, times 1 + scale, plus shift (Zhang and Sennrich 2019)."""
    return _modulated(x.to(arithmetic(x.dtype)), shift, scale, weight, None, eps, "rms").to(x.dtype)


def residual_gate_norm_modulate(
    x: Tensor,
    branch: Tensor,
    gate: Modulation,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    norm: str = "layer",
) -> tuple[Tensor, Tensor]:
    """x + gate * branch, and its modulated norm."""
    v = _gated(x, branch, gate)
    return v.to(x.dtype), _modulated(v, shift, scale, weight, bias, eps, norm).to(x.dtype)


def gate_residual(x: Tensor, branch: Tensor, gate: Modulation) -> Tensor:
    """x + gate * branch."""
    return _gated(x, branch, gate).to(x.dtype)


def vjp(
    x: Tensor,
    branch: Tensor | None,
    gate: Modulation,
    scale: Modulation,
    weight: Tensor | None,
    bias: Tensor | None,
    grad_sum: Tensor | None,
    grad: Tensor | None,
    eps: float,
    norm: str | None,
) -> dict[str, Tensor]:
    r"""Gradients of all of the above, each of x's shape (sum over what was broadcast), in the arithmetic of x.

    grad_sum is the gradient in x', grad that in y (either None where its result has no part; norm None: there is no y).
    With v = x', n = norm(v), q = n * weight + bias, p = grad * (1 + scale), g = p * weight:

    .. math:: d = \text{grad\_sum} + r\,(g - \overline{g} - n\,\overline{g n})

    (without the first mean for the RMS norm) is the gradient in x; in the branch it is gate d, in the gate branch d,
    in the shift grad, in the scale grad q, in the bias p and in the weight p n.
    """
    u = x.to(arithmetic(x.dtype))
    found: dict[str, Tensor] = {}
    d = torch.zeros_like(u) if grad_sum is None else grad_sum.to(u.dtype)
    if norm is not None and grad is not None:
        v = u if branch is None else _gated(x, branch, gate)
        n, rstd = normalized(v, eps, norm)
        p = dy = grad.to(u.dtype)
        w, b, s = (total(m, u) for m in (weight, bias, scale))
        if s is not None:
            p = p * (1 + s)
        g = p if w is None else p * w
        inner = g - n * (g * n).mean(-1, keepdim=True)
        if norm == "layer":
            inner = inner - g.mean(-1, keepdim=True)
        d = d + rstd * inner
        q = n if w is None else n * w
        found |= {"shift": dy, "scale": dy * (q if b is None else q + b), "weight": p * n, "bias": p}
    found["x"] = d
    if branch is not None:
        h, k = branch.to(u.dtype), total(gate, u)
        found["branch"] = d if k is None else k * d
        found["gate"] = d * h
    return found
