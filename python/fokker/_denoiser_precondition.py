"""The preconditioning of EDM, and of VP and VE in its form, each one affine step with coefficients a sample."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._denoiser_embeddings import _plain, row
from ._denoiser_heads import check_number, check_positive, check_tensor
from ._sde_step import affine_step
from .reference.denoiser_heads import arithmetic

__all__ = ["edm_precondition_in", "edm_precondition_out"]

FORMS = ("edm", "vp", "ve")


def _level(function: str, sigma: Any, x: Tensor, sigma_data: Any, form: Any) -> float | Tensor:
    """A number, or a float64 tensor (batch,), (1,) or ()."""
    if form not in FORMS:
        raise ValueError(f"{function}: form must be 'edm', 'vp' or 've', got {form!r}")
    check_positive(f"{function}: sigma_data", sigma_data)
    if isinstance(sigma, numbers.Real) and not isinstance(sigma, bool):
        return float(sigma)
    check_tensor(function, "sigma", sigma, x)
    batch = x.shape[0]
    if sigma.dim() and (sigma.shape[0] not in (1, batch) or sigma.numel() != sigma.shape[0]):
        raise ValueError(
            f"{function}: sigma must have one entry a sample, shape ({batch},) or ({batch}, 1, ...), or be a number, "
            f"got {tuple(sigma.shape)}"
        )
    return sigma.double() if sigma.dim() < 2 else sigma.double().reshape(sigma.shape[:1])


def _table(values: tuple[Any, ...], x: Tensor) -> Tensor:
    """Coefficients in what x is computed in, (columns,) or (batch, columns)."""
    if all(isinstance(v, float) for v in values):
        return row(values, x)
    if any(isinstance(v, np.ndarray) for v in values):
        shape = next(v.shape for v in values if isinstance(v, np.ndarray))  # all are made of one sigma
        table = np.empty((*shape, len(values)), np.float64 if x.dtype is torch.float64 else np.float32)
        for k, v in enumerate(values):
            table[..., k] = v
        return torch.from_numpy(table[0] if shape == (1,) else table)
    like = next(v for v in values if isinstance(v, Tensor))
    columns = [v if isinstance(v, Tensor) else torch.full_like(like, v) for v in values]
    table = torch.stack(columns, -1).to(arithmetic(x.dtype))
    return table[0] if table.dim() == 2 and table.shape[0] == 1 else table


def edm_precondition_in(
    x: Tensor,
    sigma: float | Tensor,
    sigma_data: float = 0.5,
    *,
    form: str = "edm",
    beta_d: float = 19.9,
    beta_min: float = 0.1,
    steps: int = 1000,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""What a preconditioned network is fed: (:math:`c_{in} x`, :math:`c_{noise}`).

    ====  ============================================  ==========================================
    form  c_in                                          c_noise
    ====  ============================================  ==========================================
    edm   :math:`1 / \sqrt{\sigma^2 + \sigma_d^2}`      :math:`\ln(\sigma) / 4`
    vp    :math:`1 / \sqrt{\sigma^2 + 1}`               :math:`(M - 1)\, t`, the time of :math:`\sigma`
    ve    1                                             :math:`\ln(\sigma / 2)`
    ====  ============================================  ==========================================

    Args:
        x: the noisy state (B, ...), any strides; float32, float64, bfloat16, float16.
        sigma: its noise level, a number, or a tensor of one entry or one a sample.
        sigma_data: :math:`\sigma_d`, the standard deviation of the data.
        beta_d, beta_min, steps: of the VP schedule, M = ``steps``:
            :math:`t = (\sqrt{\beta_{min}^2 + 2 \beta_d \ln(1 + \sigma^2)} - \beta_{min}) / \beta_d`.
        out: a tensor of x's shape to write c_in x into, of any of these dtypes (the network's, when x is kept in
            float32); then no gradient is recorded.

    Returns:
        c_in x in x's dtype (``out``'s), and c_noise in sigma's shape, (B,), (1,) or (), in float32 (float64 for a
        float64 x). Coefficients are computed in float64, the product in float32 (float64), rounded once.

    Differentiable in x and sigma, any number of times. ValueError and TypeError name what does not fit.
    Source: Karras et al. 2022 (arXiv 2206.00364) table 1.
    """
    name = "edm_precondition_in"
    check_tensor(name, "x", x)
    if not x.dim():
        raise ValueError(f"{name}: x must have shape (batch, ...), got a 0-dimensional tensor")
    s = _level(name, sigma, x, sigma_data, form)
    check_positive(f"{name}: beta_d", beta_d)
    if check_number(f"{name}: beta_min", beta_min) < 0:
        raise ValueError(f"{name}: beta_min must be at least 0, got {beta_min}")
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"{name}: steps must be an int, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, got {steps}")
    level = s if isinstance(s, Tensor) else torch.full((), s, dtype=torch.float64, device=x.device)
    if form == "edm":
        c_in = (level.square() + sigma_data**2).rsqrt()
        noise = level.log() / 4
    elif form == "vp":
        square = level.square()
        c_in = (square + 1).rsqrt()
        time = ((beta_min**2 + 2 * beta_d * square.log1p()).sqrt() - beta_min) / beta_d
        noise = (steps - 1) * time
    else:
        c_in = torch.ones_like(level)
        noise = (level / 2).log()
    y = affine_step(x, (), _table((c_in,), x), out=out)
    return y, noise.to(arithmetic(x.dtype))


def edm_precondition_out(
    x: Tensor,
    prediction: Tensor,
    sigma: float | Tensor,
    sigma_data: float = 0.5,
    *,
    form: str = "edm",
    out: Tensor | None = None,
) -> Tensor:
    r"""The denoiser of a preconditioned network's output F: :math:`D = c_{skip} x + c_{out} F`, in one pass.

    ====  ==================================================  =====================================================
    form  c_skip                                              c_out
    ====  ==================================================  =====================================================
    edm   :math:`\sigma_d^2 / (\sigma^2 + \sigma_d^2)`        :math:`\sigma \sigma_d / \sqrt{\sigma^2 + \sigma_d^2}`
    vp    1                                                   :math:`-\sigma`
    ve    1                                                   :math:`\sigma`
    ====  ==================================================  =====================================================

    Args:
        x: the noisy state (B, ...); prediction: F, of x's shape; each of any strides and floating dtype.
        sigma, sigma_data: as in `edm_precondition_in`.
        out: a tensor of x's shape to write into; then no gradient is recorded.

    Returns:
        D in x's dtype: coefficients in float64, sums in float32 (float64 for a float64 x), rounded once.

    Differentiable in x, prediction and sigma, any number of times. ValueError and TypeError name what does not fit.
    A sampler's step need not form D at all: `fokker.sde.affine_step` takes the products of these coefficients and its
    own. Source: Karras et al. 2022 (arXiv 2206.00364) table 1.
    """
    name = "edm_precondition_out"
    check_tensor(name, "x", x)
    check_tensor(name, "prediction", prediction, x)
    if prediction.shape != x.shape:
        raise ValueError(f"{name}: prediction {tuple(prediction.shape)} must have the shape of x {tuple(x.shape)}")
    if not x.dim():
        raise ValueError(f"{name}: x must have shape (batch, ...), got a 0-dimensional tensor")
    s = _level(name, sigma, x, sigma_data, form)
    if isinstance(s, Tensor) and s.is_cpu and _plain(x, prediction, s):
        s = s.numpy()  # which takes a fifth of torch's time for a few numbers
    if form == "edm":
        data = sigma_data**2
        total = s * s + data
        values = (data / total, s * sigma_data / total**0.5)
    else:
        values = (1.0, -s if form == "vp" else s)
    return affine_step(x, (prediction,), _table(values, x), out=out)
