"""torch.distributions faces of fokker's families: `VonMisesFisher` and `HypersphericalUniform` on the sphere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from . import vmf
from ._elementwise import FLOATS, check_dense
from ._vmf_arguments import check_dim
from ._vmf_sampling import sample_shape_of

__all__ = ["HypersphericalUniform", "VonMisesFisher", "unit_vector"]


class _UnitVector(constraints.Constraint):
    """Vectors of length one (to about the square root of what a few roundings leave)."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        tolerance = 2e-2 if value.dtype in (torch.float16, torch.bfloat16) else 1e-4
        return (torch.linalg.vector_norm(value.float() if tolerance > 1e-3 else value, dim=-1) - 1).abs() <= tolerance

    def __repr__(self) -> str:
        return "UnitVector()"


unit_vector = _UnitVector()


def _check_dtype(what: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise TypeError(f"{what} float16, bfloat16, float32 or float64, got {dtype}")


def _check_value(value: Any) -> None:
    if isinstance(value, Tensor):
        check_dense("log_prob", "value", value)


class VonMisesFisher(Distribution):
    r"""The von Mises-Fisher distribution, density ``C_d(k) exp(k mu.x)`` on the unit sphere of R^d, d >= 2.

    Args:
        mean_direction: mu, ``(..., d)``, unit vectors (``loc`` in some libraries).
        concentration: k >= 0, ``(...)`` (``scale`` in s-vae); broadcasts with the batch dimensions of mu.
        validate_args: check parameters and values, as in torch.distributions.

    ``rsample`` is differentiable in both parameters; the gradient in the concentration is the implicit one (see
    `fokker.vmf.rsample`). ``seed``, ``step`` and ``sample_ids`` make samples a pure function of a counter.
    """

    arg_constraints = {"mean_direction": unit_vector, "concentration": constraints.nonnegative}  # noqa: RUF012
    support = unit_vector
    has_rsample = True

    def __init__(
        self, mean_direction: Tensor, concentration: Tensor | float, validate_args: bool | None = None
    ) -> None:
        if not isinstance(mean_direction, Tensor) or not mean_direction.dim():
            raise ValueError("mean_direction must be a tensor of shape (..., d)")
        check_dense("VonMisesFisher", "mean_direction", mean_direction)
        if mean_direction.shape[-1] < 2:
            raise ValueError(f"mean_direction {tuple(mean_direction.shape)}: the dimension must be at least 2")
        _check_dtype("mean_direction must be", mean_direction.dtype)
        if isinstance(concentration, Tensor):
            check_dense("VonMisesFisher", "concentration", concentration)
            if concentration.is_complex():
                raise TypeError(f"concentration must be real, got {concentration.dtype}")
            if concentration.device != mean_direction.device:
                where = f"concentration is on {concentration.device}, mean_direction on {mean_direction.device}"
                raise TypeError(f"{where}; one device expected")
        k = torch.as_tensor(concentration, dtype=mean_direction.dtype, device=mean_direction.device)
        try:
            batch = torch.broadcast_shapes(mean_direction.shape[:-1], k.shape)
        except RuntimeError:
            raise ValueError(
                f"mean_direction {tuple(mean_direction.shape)} and concentration {tuple(k.shape)} do not broadcast"
            ) from None
        self.mean_direction = mean_direction.expand(*batch, -1)
        self.concentration = k.expand(batch)
        super().__init__(batch, mean_direction.shape[-1:], validate_args=validate_args)

    @property
    def dim(self) -> int:
        """d, the dimension of the space around the sphere."""
        return self._event_shape[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        new = self._get_checked_instance(VonMisesFisher, _instance)
        batch_shape = torch.Size(batch_shape)
        new.mean_direction = self.mean_direction.expand(*batch_shape, self.dim)
        new.concentration = self.concentration.expand(batch_shape)
        super(VonMisesFisher, new).__init__(batch_shape, self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """E x = A_d(k) mu (inside the ball: not a direction)."""
        return vmf.mean_resultant_length(self.dim, self.concentration)[..., None] * self.mean_direction

    @property
    def mode(self) -> Tensor:
        """mu (at k = 0 every point is one)."""
        return self.mean_direction

    def _spread(self) -> tuple[Tensor, Tensor]:
        # Variances across and along mu: A/k, regular at k = 0 in this form (Riccati), and A'.
        k, d = self.concentration, self.dim
        along = vmf.ops.scalar["resultant_derivative"](k, d)
        a, rest = vmf.mean_resultant_length(d, k), vmf.mean_resultant_length(d, k, complement=True)
        return (rest * (1 + a) - along) / (d - 1), along

    @property
    def variance(self) -> Tensor:
        """The diagonal of `covariance_matrix`, (..., d)."""
        across, along = self._spread()
        square = self.mean_direction.square()
        return across[..., None] * (1 - square) + along[..., None] * square

    @property
    def covariance_matrix(self) -> Tensor:
        """(A/k) (I - mu mu^T) + A' mu mu^T, (..., d, d)."""
        across, along = self._spread()
        outer = self.mean_direction[..., :, None] * self.mean_direction[..., None, :]
        eye = torch.eye(self.dim, dtype=outer.dtype, device=outer.device)
        return across[..., None, None] * (eye - outer) + along[..., None, None] * outer

    def rsample(self, sample_shape: Any = torch.Size(), **noise: Any) -> Tensor:  # noqa: B008
        """Differentiable samples; ``noise``: seed, step, sample_ids, generator of `fokker.vmf.rsample`."""
        return vmf.rsample(self.mean_direction, self.concentration, sample_shape, **noise)

    def sample(self, sample_shape: Any = torch.Size(), **noise: Any) -> Tensor:  # noqa: B008
        """Samples without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, **noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """log density with respect to the surface measure, at ``value`` (..., d)."""
        _check_value(value)
        if self._validate_args:
            self._validate_sample(value)
        return vmf.log_prob(value, self.mean_direction, self.concentration)

    def entropy(self) -> Tensor:
        """Differential entropy in nats."""
        return vmf.entropy(self.dim, self.concentration)

    @classmethod
    def fit(cls, x: Tensor, weights: Tensor | None = None, validate_args: bool | None = None) -> VonMisesFisher:
        """The maximum-likelihood distribution of unit vectors ``x`` (n, d), with weights (n,) if given."""
        return cls(*vmf.fit(x, weights, validate=validate_args is not False), validate_args=validate_args)


class HypersphericalUniform(Distribution):
    """The uniform distribution on the unit sphere of R^dim; ``VonMisesFisher`` with concentration 0.

    Args:
        dim: d >= 2. batch_shape, dtype, device: of the results.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = unit_vector
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Any = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.dim = check_dim(dim)
        dtype = dtype or torch.get_default_dtype()
        _check_dtype("dtype must be", dtype)
        self._like = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size([self.dim]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HypersphericalUniform:
        new = self._get_checked_instance(HypersphericalUniform, _instance)
        new.dim, new._like = self.dim, self._like
        super(HypersphericalUniform, new).__init__(torch.Size(batch_shape), self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self._like.expand(*self._batch_shape, self.dim)

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self._like, 1 / self.dim).expand(*self._batch_shape, self.dim)

    def rsample(self, sample_shape: Any = torch.Size(), **noise: Any) -> Tensor:  # noqa: B008
        first = torch.zeros(self.dim, dtype=self._like.dtype, device=self._like.device)
        first[0] = 1.0
        return vmf.sample(first, self._like, (*sample_shape_of(sample_shape), *self._batch_shape), **noise)

    def sample(self, sample_shape: Any = torch.Size(), **noise: Any) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape, **noise)

    def log_prob(self, value: Tensor) -> Tensor:
        _check_value(value)
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self._batch_shape)
        return vmf.log_normalizer(self.dim, self._like).expand(shape)

    def entropy(self) -> Tensor:
        return (-vmf.log_normalizer(self.dim, self._like)).expand(self._batch_shape)


def _same_dimension(p: Any, q: Any) -> None:
    if p.dim != q.dim:
        raise ValueError(f"KL between distributions on spheres of different dimensions, {p.dim} and {q.dim}")


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    _same_dimension(p, q)
    return vmf.kl_divergence(p.mean_direction, p.concentration, q.mean_direction, q.concentration)


@register_kl(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Tensor:
    _same_dimension(p, q)
    return vmf.kl_uniform(p.dim, p.concentration).expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


@register_kl(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p: HypersphericalUniform, q: VonMisesFisher) -> Tensor:
    _same_dimension(p, q)
    # E log q = log C_q under the uniform distribution, so this is the Bregman divergence from concentration 0.
    gap = vmf.ops.bregman(torch.zeros_like(q.concentration), q.concentration, q.dim)
    return gap.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


@register_kl(HypersphericalUniform, HypersphericalUniform)
def _kl_uniform_uniform(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    _same_dimension(p, q)
    return p._like.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
