"""Kernel density estimators in scikit-learn's interface, over the exact sums of `fokker.kde`."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from . import kde
from ._kde_arguments import PRECISIONS
from ._kde_sampling import radii

KERNELS = tuple(k for k in kde.KERNELS if k != "vmf")


class KernelDensity(DensityMixin, BaseEstimator):
    r"""Kernel density estimation, with the interface and the conventions of `sklearn.neighbors.KernelDensity`.

    Exact in every dimension (no tree, no tolerance): the tree-based estimator adds the residue of its bounds to the log
    density and is off by nats from d = 16 on, and its cosine kernel is not normalised in even dimensions.
    scikit-learn's tree arguments are accepted and have nothing to do.

    Args:
        bandwidth: a number; "scott", n^(-1/(d+4)); "silverman", (n (d+2) / 4)^(-1/(d+4)) (both as scikit-learn, with n
            the number of rows or, with weights, (sum w)^2 / sum w^2); or "loo", the maximum of the leave-one-out
            likelihood (Duin 1976); a warning where that grows to an end of the search, as it does for h -> 0 where
            every row has an equal.
        kernel: one of `fokker.kde.KERNELS` but vmf.
        nu: degrees of freedom of student_t.
        bandwidth_convention: "radius", h as in the kernel's formula (scikit-learn); "deviation", the standard deviation
            of a coordinate under the kernel (KDEpy), whatever the kernel.
        precision: as in `fokker.kde.log_prob`.
        algorithm, metric, atol, rtol, breadth_first, leaf_size, metric_params: accepted for scikit-learn's sake; metric
            must be "euclidean".

    Attributes:
        bandwidth_: the number in use, as a radius. n_features_in_.

    Errors: ValueError for empty or non-finite data, parameters out of range, negative or all-zero weights.
    """

    def __init__(
        self,
        *,
        bandwidth: Any = 1.0,
        algorithm: str = "auto",
        kernel: str = "gaussian",
        metric: str = "euclidean",
        atol: float = 0,
        rtol: float = 0,
        breadth_first: bool = True,
        leaf_size: int = 40,
        metric_params: Any = None,
        nu: float = 1.0,
        bandwidth_convention: str = "radius",
        precision: str = "highest",
    ) -> None:
        self.bandwidth = bandwidth
        self.algorithm = algorithm
        self.kernel = kernel
        self.metric = metric
        self.atol = atol
        self.rtol = rtol
        self.breadth_first = breadth_first
        self.leaf_size = leaf_size
        self.metric_params = metric_params
        self.nu = nu
        self.bandwidth_convention = bandwidth_convention
        self.precision = precision

    def _check_parameters(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if self.metric != "euclidean":
            raise ValueError(f"metric must be 'euclidean', got {self.metric!r}")
        if self.bandwidth_convention not in ("radius", "deviation"):
            raise ValueError(f"bandwidth_convention must be radius or deviation, got {self.bandwidth_convention!r}")
        number = isinstance(self.bandwidth, Real) and not isinstance(self.bandwidth, bool)
        if not (number and 0 < self.bandwidth < math.inf) and self.bandwidth not in ("scott", "silverman", "loo"):
            raise ValueError(f"bandwidth must be a positive number, scott, silverman or loo, got {self.bandwidth!r}")
        if not (isinstance(self.nu, Real) and 0 < self.nu < math.inf):
            raise ValueError(f"nu must be a positive number, got {self.nu!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def _choose_bandwidth(self) -> float:
        n, d = self._data.shape
        w = self._weights
        size = float(n) if w is None else float(w.sum() ** 2 / np.square(w).sum())
        if self.bandwidth == "loo":
            return _leave_one_out(self._data, w, self.kernel, self.nu, size)
        if self.bandwidth == "scott":
            h = size ** (-1 / (d + 4))
        elif self.bandwidth == "silverman":
            h = (size * (d + 2) / 4) ** (-1 / (d + 4))
        else:
            h = float(self.bandwidth)
        return h / kernel_deviation(self.kernel, d, self.nu) if self.bandwidth_convention == "deviation" else h

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KernelDensity:
        """Keep the data and choose the bandwidth; ``sample_weight`` (n,) >= 0, not all 0."""
        self._check_parameters()
        X = validate_data(self, X, dtype=[np.float64, np.float32], order="C", copy=True)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            if not sample_weight.sum() > 0:
                raise ValueError("sample_weight must not be all zero")
        self._data, self._weights = X, sample_weight
        self.bandwidth_ = self._choose_bandwidth()
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """The log density at each row, in nats."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], order="C", reset=False)
        return kde.log_prob(
            X,
            self._data,
            self.bandwidth_,
            weights=self._weights,
            kernel=self.kernel,
            nu=self.nu,
            precision=self.precision,
        )

    def score(self, X: Any, y: Any = None) -> float:
        """The sum of the log densities of all rows."""
        return float(np.sum(self.score_samples(X), dtype=np.float64))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws from the estimate, ``(n_samples, d)``, for every kernel."""
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 0:
            raise ValueError(f"n_samples must be an integer >= 0, got {n_samples!r}")
        rng = check_random_state(random_state)
        p = None if self._weights is None else self._weights / self._weights.sum()
        centres = self._data[rng.choice(len(self._data), size=n_samples, p=p)]
        shape = centres.shape
        if self.kernel == "laplace":
            return centres + rng.laplace(scale=self.bandwidth_, size=shape).astype(centres.dtype)
        direction = rng.normal(size=shape)
        if self.kernel == "gaussian":
            return centres + (self.bandwidth_ * direction).astype(centres.dtype)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        r = self.bandwidth_ * radii(rng, self.kernel, shape[1], n_samples, self.nu)
        return centres + (r[:, None] * direction).astype(centres.dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags = None
        return tags


class SDKernelDensity(KernelDensity):
    r"""Score-debiased kernel density: the data are moved along their own score before the estimate (gaussian kernel).

    ``y_j' = y_j + (h^2 / 2) grad log p(y_j)`` with p the plain estimate at bandwidth h, then the plain estimate over
    the moved data: the bias of order h^2 cancels (Epstein et al. 2025). Parameters as in `KernelDensity`.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> SDKernelDensity:
        """Choose the bandwidth and move the data."""
        if self.kernel != "gaussian":
            raise ValueError(f"SDKernelDensity needs kernel='gaussian', got {self.kernel!r}")
        super().fit(X, y, sample_weight)
        step = kde.score(self._data, self._data, self.bandwidth_, weights=self._weights, precision=self.precision)
        self._data = (self._data + 0.5 * self.bandwidth_**2 * step).astype(self._data.dtype)
        return self


class LaplaceKernelDensity(KernelDensity):
    r"""Laplace-corrected kernel density (gaussian kernel): p - (h^2 / 2) Laplacian p, from one pass over the data.

    As with `SDKernelDensity` the bias of order h^2 cancels, but the data stay and the estimate may be negative
    (`fokker.kde.laplace_corrected`). Parameters as in `KernelDensity`; there are no samples of it.
    """

    @property
    def sample(self) -> Any:  # type: ignore[override]
        """Not there."""
        raise AttributeError("LaplaceKernelDensity has no samples: it is negative in places")

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> LaplaceKernelDensity:
        """Keep the data and choose the bandwidth."""
        if self.kernel != "gaussian":
            raise ValueError(f"LaplaceKernelDensity needs kernel='gaussian', got {self.kernel!r}")
        super().fit(X, y, sample_weight)
        return self

    def signed_score_samples(self, X: Any) -> kde.Signed:
        """Sign and logarithm of the magnitude at each row."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], order="C", reset=False)
        return kde.laplace_corrected(X, self._data, self.bandwidth_, weights=self._weights, precision=self.precision)

    def score_samples(self, X: Any) -> np.ndarray:
        """The log density at each row, in nats; -inf where the estimate is not positive."""
        sign, log_abs = self.signed_score_samples(X)
        return np.where(sign > 0, log_abs, -np.inf).astype(log_abs.dtype)


def _leave_one_out(data: np.ndarray, w: np.ndarray | None, kernel: str, nu: float, size: float) -> float:
    # golden-section search of the mean leave-one-out log density over log h, around the rule of thumb; of a compact
    # kernel above the bandwidths at which some row has no other within reach, where that is -inf
    n, d = data.shape
    if n < 2:
        raise ValueError(f"bandwidth='loo' needs at least two rows, got n_samples = {n}")
    spread = float(np.sqrt(np.var(data, axis=0, dtype=np.float64).mean()))
    if not spread > 0:
        raise ValueError("bandwidth='loo' needs data that are not all equal")
    weights = np.ones(n) if w is None else w
    x = torch.from_numpy(data)

    def likelihood(log_h: float) -> float:
        found = kde.log_prob(x, x, math.exp(log_h), weights=w, kernel=kernel, nu=nu, exclude_self=True)
        finite = found.double().clamp(min=-1e300).numpy()
        return float(np.sum(weights * finite) / weights.sum())

    start = math.log(spread * size ** (-1 / (d + 4)))
    low, high = start - 4.0, start + 3.0
    ends = low, high
    if kernel in ("epanechnikov", "tophat", "linear", "cosine"):
        found = kde.evaluate(x, x, 1.0, outputs=("nearest_distance",), weights=w, exclude_self=True)
        apart = float(np.max(found["nearest_distance"].double().numpy()[weights > 0]))
        low = max(low, math.log(apart)) if 0 < apart < math.inf else low
        high = max(high, low + 3.0)
    ratio = 0.5 * (math.sqrt(5.0) - 1.0)
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = likelihood(a), likelihood(b)
    while high - low > 1e-3:
        if fa >= fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = likelihood(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = likelihood(b)
    if low == ends[0] or high == ends[1]:
        warnings.warn(
            f"bandwidth='loo': the leave-one-out likelihood grows to an end of the search, h = {math.exp(a):.3g}",
            ConvergenceWarning,
            stacklevel=4,
        )
    return math.exp(0.5 * (low + high))


def kernel_deviation(kernel: str, dim: int, nu: float = 1.0) -> float:
    """The standard deviation of one coordinate under a kernel of bandwidth 1."""
    d = dim
    if kernel == "gaussian":
        return 1.0
    if kernel == "laplace":
        return math.sqrt(2.0)
    if kernel == "exponential":
        return math.sqrt(d + 1.0)
    if kernel == "matern32":
        return math.sqrt((d + 3.0) / 3.0)
    if kernel == "matern52":
        return math.sqrt((d + 5.0) / 5.0)
    if kernel in ("student_t", "cauchy"):
        nu = 1.0 if kernel == "cauchy" else nu
        if nu <= 2:
            raise ValueError(f"kernel {kernel!r} with {nu} degrees of freedom has no standard deviation")
        return math.sqrt(nu / (nu - 2.0))
    if kernel == "epanechnikov":
        return math.sqrt(1.0 / (d + 4.0))
    if kernel == "tophat":
        return math.sqrt(1.0 / (d + 2.0))
    if kernel == "linear":
        return math.sqrt((d + 1.0) / ((d + 2.0) * (d + 3.0)))
    # cosine: moments by a quadrature that is exact for polynomials of high degree
    z, weight = np.polynomial.legendre.leggauss(200)
    z = 0.5 * (z + 1.0)
    density = weight * np.exp((d - 1) * np.log(z)) * np.cos(0.5 * math.pi * z)
    return math.sqrt(float((density * z * z).sum() / density.sum()) / d)
