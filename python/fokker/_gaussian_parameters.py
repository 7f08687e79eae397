"""The parameters of a Gaussian mixture: checked once, brought into the form that the tiles take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._gaussian_tiles import Factors, _transformed
from ._kde_arguments import _tensor, is_number

#: covariance types, and the shapes of a covariance: one a component, or one for all
COVARIANCES = {
    "isotropic": ("(K,)", "()"),
    "diag": ("(K, d)", "(d,)"),
    "lowrank": ("a pair of (K, d, r) and (K,)", "a pair of (d, r) and ()"),
    "full": ("(K, d, d)", "(d, d)"),
}


class Mixture:
    r"""A mixture of K Gaussians in d dimensions, sum_k w_k N(mu_k, S_k).

    Args:
        means: mu ``(K, d)``.
        covariance: S, by type. isotropic: variances v ``(K,)``, S = v I; diag: variances ``(K, d)``; full:
            ``(K, d, d)`` (its symmetric part counts); lowrank: a pair of factors W ``(K, d, r)`` and variances t
            ``(K,)``, S = W W^T + t I. Without the K dimension, one for all components. Singular covariances, a
            variance of 0 among them, have a density where noise is added, and NaN where none is.
        weights: w ``(K,)``, >= 0, scaled to sum to one; None for equal ones.
        covariance_type: "isotropic" (or "spherical"), "diag", "lowrank" or "full".

    Tensors of float32 or float64 (halves are computed in the wider), or NumPy arrays, whose functions then return NumPy
    arrays. All three are differentiable. The eigenvectors of full and low-rank covariances are computed at the first
    use and kept until the covariance is changed in place.

    Raises:
        ValueError: shapes that do not fit, an unknown covariance type, weights negative or all zero, variances
            negative, values not finite, a matrix that is not symmetric or not positive semi-definite.
        TypeError: complex or sparse tensors, or tensors on unlike devices.
    """

    def __init__(self, means: Any, covariance: Any, weights: Any = None, covariance_type: str = "full") -> None:
        kind = "isotropic" if covariance_type == "spherical" else covariance_type
        if kind not in COVARIANCES:
            raise ValueError(f"covariance_type must be one of {', '.join(COVARIANCES)}, got {covariance_type!r}")
        self.covariance_type = kind
        pair = covariance if kind == "lowrank" else (covariance,)
        if kind == "lowrank" and not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise ValueError(
                f"covariance must be {COVARIANCES[kind][0]} for 'lowrank', got {type(covariance).__name__}"
            )
        given = (means, *pair, *(() if weights is None else (weights,)))
        self.numpy = not any(isinstance(t, Tensor) for t in given)
        self.means = _tensor("Mixture", "means", means)
        device = self.means.device
        if self.means.dim() != 2 or not self.means.numel():
            raise ValueError(f"means must have shape (K, d) with K, d >= 1, got {tuple(self.means.shape)}")
        parts = tuple(_tensor("Mixture", "covariance", t, device) for t in pair)
        if weights is None:
            weights = torch.ones(self.means.shape[0], dtype=self.means.dtype, device=device)
        self.weights = _tensor("Mixture", "weights", weights, device)
        self._check_shapes(parts)
        self.covariance: Any = parts if kind == "lowrank" else parts[0]
        self._parts = parts
        self._spectrum: tuple[int, Tensor, Tensor] | None = None
        self._checked: int | None = None
        # Only where nobody waits for a device; elsewhere what is wrong gives NaN.
        if device.type == "cpu" and not _transformed():
            self._check_values()

    @property
    def n_components(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    @property
    def shared(self) -> bool:
        """Whether the components have one covariance."""
        return self._parts[0].dim() == {"isotropic": 0, "diag": 1, "lowrank": 2, "full": 2}[self.covariance_type]

    def __repr__(self) -> str:
        what = f"{self.covariance_type}{', one for all' if self.shared else ''}"
        return f"Mixture(n_components={self.n_components}, dim={self.dim}, covariance_type={what})"

    # ---- checks ---------------------------------------------------------------------------------------------------
    def _check_shapes(self, parts: tuple[Tensor, ...]) -> None:
        k, d = self.means.shape
        if self.weights.shape != (k,):
            raise ValueError(f"weights must have shape (K={k},), got {tuple(self.weights.shape)}")
        tails = {"isotropic": [()], "diag": [(d,)], "full": [(d, d)]}
        shapes = [tuple(t.shape) for t in parts]
        if self.covariance_type == "lowrank":
            rank = shapes[0][-1] if shapes[0] else 0
            tail: list[tuple[int, ...]] = [(d, rank), ()]
        else:
            tail = tails[self.covariance_type]  # type: ignore[assignment]
        if shapes != tail and shapes != [(k, *t) for t in tail]:
            each, common = COVARIANCES[self.covariance_type]
            seen = shapes if len(shapes) > 1 else shapes[0]
            raise ValueError(
                f"covariance of type {self.covariance_type!r} must have shape {each} or {common} with K={k}, d={d}, "
                f"got {seen}"
            )

    def _check_values(self) -> None:
        with torch.no_grad():
            for name, t in (
                ("means", self.means),
                *(("covariance", p) for p in self._parts),
                ("weights", self.weights),
            ):
                if not bool(t.isfinite().all()):
                    raise ValueError(f"{name} must be finite, got {float(t[~t.isfinite()][0])}")
            if bool((self.weights < 0).any()):
                raise ValueError(f"weights must not be negative, got {float(self.weights.min())}")
            if not bool((self.weights > 0).any()):
                raise ValueError("weights must not all be zero")
            last = self._parts[-1]
            if self.covariance_type != "full":
                if bool((last < 0).any()):
                    raise ValueError(f"covariance must hold variances >= 0, got {float(last.min())}")
            elif bool(((last - last.mT).abs() > 1e-3 * last.abs().amax((-2, -1), keepdim=True)).any()):
                raise ValueError("covariance of type 'full' must hold symmetric matrices")

    # ---- what the tiles take --------------------------------------------------------------------------------------
    def log_weights(self) -> Tensor:
        """log w (K,) in float64, -inf where w is 0 (the gradient there is 0)."""
        w = self.weights.double()
        logs = torch.log(torch.where(w == 0, 1.0, w))
        return torch.where(w == 0, -torch.inf, logs) - torch.log(w.sum())

    def _symmetric(self) -> Tensor:
        """The matrix that is decomposed: S, or W^T W."""
        first = self._parts[0].double()
        return first.mT @ first if self.covariance_type == "lowrank" else 0.5 * (first + first.mT)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors and eigenvalues (>= 0), in float64, of S (full) or W^T W (lowrank); constants to autograd."""
        source = self._parts[0]
        keep = not _transformed() and type(source) in (Tensor, torch.nn.Parameter) and not source.is_inference()
        if keep and self._spectrum is not None and self._spectrum[0] == source._version:
            return self._spectrum[1:]
        with torch.no_grad():
            values, vectors = torch.linalg.eigh(self._symmetric().detach())
            if keep and source.device.type == "cpu" and values.numel():
                least = (values[..., :1] + 1e-6 * values[..., -1:].abs()).min()
                if bool(least < 0):
                    raise ValueError(
                        f"covariance must be positive semi-definite, got an eigenvalue of {float(values.min()):.3g}"
                    )
            values = values.clamp(min=0.0)
        if keep:
            self._spectrum = (source._version, vectors, values)
        return vectors, values

    def symmetric(self) -> Any:
        """The covariance in float64 (lowrank: the pair W, t) with a dimension of K or of one in front.

        On the CPU a full one is checked, once.
        """
        found = tuple(t.double() for t in self._parts)
        if self.covariance_type == "full":
            self._check_semidefinite()
            found = (self._symmetric(),)
        if self.shared:
            found = tuple(t[None] for t in found)
        return found if self.covariance_type == "lowrank" else found[0]

    def _check_semidefinite(self) -> None:
        source = self._parts[0]
        plain = not _transformed() and type(source) in (Tensor, torch.nn.Parameter) and not source.is_inference()
        if not plain or source.device.type != "cpu" or self._checked == source._version:
            return
        with torch.no_grad():
            s = self._symmetric()
            jitter = 1e-6 * s.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
            unit = torch.eye(self.dim, dtype=s.dtype, device=s.device)
            if bool(torch.linalg.cholesky_ex(s + jitter * unit)[1].any()):
                self.spectrum()  # which says so where it is not
        self._checked = source._version

    def factors(self) -> Factors:
        """The covariance as the tiles take it, with a dimension of K or of one in front."""
        front = (lambda t: t[None]) if self.shared else (lambda t: t)
        parts = tuple(front(t.double()) for t in self._parts)
        kind = self.covariance_type
        if kind in ("isotropic", "diag"):
            return Factors(kind, parts[0])
        vectors, values = (front(t) for t in self.spectrum())
        if kind == "lowrank":
            return Factors(kind, parts[0], parts[1], vectors, values)
        wanted = torch.is_grad_enabled() and self._parts[0].requires_grad
        return Factors(kind, front(self._symmetric()) if wanted or _transformed() else None, None, vectors, values)

    # ---- other forms ----------------------------------------------------------------------------------------------
    def dense(self) -> Tensor:
        """The covariances as matrices (K, d, d), in the dtype of the covariance."""
        k, d = self.means.shape
        first, last = self._parts[0], self._parts[-1]
        unit = torch.eye(d, dtype=last.dtype, device=last.device)
        if self.covariance_type == "isotropic":
            found = first[..., None, None] * unit
        elif self.covariance_type == "diag":
            found = torch.diag_embed(first)
        elif self.covariance_type == "lowrank":
            found = first @ first.mT + last[..., None, None] * unit
        else:
            found = 0.5 * (first + first.mT)
        return found.expand(k, d, d)

    def log_dets(self) -> Tensor:
        """log det S_k (K,) in float64."""
        d = self.dim
        first, last = self._parts[0].double(), self._parts[-1].double()
        if self.covariance_type == "isotropic":
            found = d * torch.log(first)
        elif self.covariance_type == "diag":
            found = torch.log(first).sum(-1)
        elif self.covariance_type == "lowrank":
            rank = first.shape[-1]
            found = torch.log(self.spectrum()[1] + last[..., None]).sum(-1) + (d - rank) * torch.log(last)
        else:
            found = torch.log(self.spectrum()[1]).sum(-1)
        return found.expand(self.n_components)

    def select(self, components: Any) -> Mixture:
        """The components of these indices (any order) or of this mask, with their weights scaled to sum to one."""
        at = torch.as_tensor(np.asarray(components) if not isinstance(components, Tensor) else components)
        at = at.to(self.means.device)
        parts = self._parts if self.shared else tuple(t[at] for t in self._parts)
        w = self.weights[at]
        w = w / w.sum()
        chosen = Mixture(self.means[at], parts if len(parts) > 1 else parts[0], w, self.covariance_type)
        chosen.numpy = self.numpy
        return chosen

    def diffused(self, alpha: float = 1.0, sigma: float = 0.0) -> Mixture:
        """The mixture that alpha x + sigma z is drawn from: means alpha mu, covariances alpha^2 S + sigma^2 I."""
        if not -math.inf < alpha < math.inf or not 0 <= sigma < math.inf:
            raise ValueError(f"alpha must be finite and sigma >= 0, got alpha={alpha}, sigma={sigma}")
        first, last = self._parts[0], self._parts[-1]
        noise = sigma * sigma
        if self.covariance_type == "lowrank":
            covariance: Any = (alpha * first, alpha * alpha * last + noise)
        elif self.covariance_type == "full":
            covariance = alpha * alpha * first + noise * torch.eye(self.dim, dtype=first.dtype, device=first.device)
        else:
            covariance = alpha * alpha * first + noise
        found = Mixture(alpha * self.means, covariance, self.weights, self.covariance_type)
        found.numpy = self.numpy
        return found


def noise_level(value: Any, name: str, batch: torch.Size, device: torch.device) -> Tensor:
    """alpha or sigma in float64: (1,), or one a query (n,)."""
    if is_number(value):
        if not -math.inf < value < math.inf or (name == "sigma" and value < 0):
            raise ValueError(f"{name} must be a finite number{' >= 0' * (name == 'sigma')}, got {value}")
        return torch.full((1,), float(value), dtype=torch.float64, device=device)
    t = _tensor("mixture", name, value, device).double()
    if name == "sigma":
        t = torch.where(t >= 0, t, torch.nan)
    if t.numel() == 1 and t.dim() <= len(batch):
        return t.reshape(1)
    try:
        return t.expand(batch).reshape(-1)
    except RuntimeError:
        raise ValueError(f"{name} {tuple(t.shape)} does not broadcast to the batch of x, {tuple(batch)}") from None
