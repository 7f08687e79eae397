"""scikit-learn estimators over fokker's ops; needs scikit-learn (``pip install fokker[sklearn]``)."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(f"fokker.estimators needs scikit-learn: pip install fokker[sklearn] ({error})") from error

from . import vmf
from ._gaussian_estimator import GaussianMixture
from ._kde_estimator import KernelDensity, LaplaceKernelDensity, SDKernelDensity
from ._mixture import affine_logsumexp, affine_moments, affine_softmax
from ._seeding import plus_plus, systematic, unit
from ._vmf_estimation import estimate

__all__ = ["GaussianMixture", "KernelDensity", "LaplaceKernelDensity", "SDKernelDensity", "VonMisesFisherMixture"]

_SEED_ROWS = 1 << 14  # k-means++ is quadratic in spirit: past this many rows it sees a systematic sample


class _Parameters(NamedTuple):
    """Mean directions (K, d), concentrations (K,) and weights (K,) of a mixture, in float64."""

    means: Tensor
    concentrations: Tensor
    weights: Tensor

    def affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``W`` (K, d) and ``b`` (K,): the log density of component k times its weight is x . W_k + b_k."""
        # A component that lost all its points keeps a finite log weight: -inf + inf would be NaN.
        log_weights = self.weights.clamp(min=torch.finfo(torch.float64).tiny).log()
        bias = vmf.log_normalizer(self.means.shape[1], self.concentrations) + log_weights
        return (self.concentrations[:, None] * self.means).to(dtype), bias.to(dtype)


class VonMisesFisherMixture(DensityMixin, BaseEstimator):
    r"""A mixture of von Mises-Fisher distributions on the unit sphere, fitted by expectation maximisation.

    Density ``sum_k w_k C_d(c_k) exp(c_k mu_k.x)`` with respect to the sphere's surface measure (Banerjee et al. 2005).
    A step is one matrix product, a fused softmax and a second product, tile by tile; its sums are float64, its
    concentrations the exact maximum-likelihood ones. Rows are directions: with ``normalize`` they are divided by their
    length. A row of zeros has none: ``fit`` gives it weight zero, and its score is the density's formula at x = 0.

    Args:
        n_components: number of components K, at most the number of rows with a positive weight.
        concentration_type: ``"full"``, one concentration a component, or ``"shared"``, one for all.
        tol: stop where the mean log-likelihood (nats a row) grows by less than this.
        max_iter: largest number of EM steps.
        n_init: starts; the one with the highest likelihood is kept.
        init: ``"k-means++"`` (on the sphere, distance 1 - cos, greedy), ``"random"`` rows, or mean directions (K, d).
        max_concentration: cap on every concentration; a component on a single point would have none.
        normalize: divide rows by their length; else rows that are not unit vectors are an error.
        random_state: int, RandomState or None. verbose: show progress (tqdm where it is installed).

    Attributes:
        weights_ (K,), mean_directions_ (K, d), concentrations_ (K,): the mixture, in the dtype of the data.
        lower_bound_: mean log-likelihood of the training data under it, exactly the last of
        log_likelihood_curve_ (n_iter_ + 1,): the same before the first step and after each; it never falls (up to
            rounding).
        converged_, n_iter_, n_features_in_.

    Errors: ValueError for empty or non-finite data, fewer than 2 features, negative or all-zero weights, more
    components than points, parameters out of range. Computation is in float32 or float64, as the data are.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        concentration_type: str = "full",
        tol: float = 1e-4,
        max_iter: int = 100,
        n_init: int = 1,
        init: Any = "k-means++",
        max_concentration: float = 1e6,
        normalize: bool = True,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.concentration_type = concentration_type
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init = init
        self.max_concentration = max_concentration
        self.normalize = normalize
        self.random_state = random_state
        self.verbose = verbose

    # ---- input --------------------------------------------------------------------------------------------------
    def _check_parameters(self) -> None:
        for name in ("n_components", "max_iter", "n_init"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if not isinstance(self.tol, Real) or not self.tol >= 0:
            raise ValueError(f"tol must be a number >= 0, got {self.tol!r}")
        if not isinstance(self.max_concentration, Real) or not 0 < self.max_concentration < math.inf:
            raise ValueError(f"max_concentration must be a finite number > 0, got {self.max_concentration!r}")
        if self.concentration_type not in ("full", "shared"):
            raise ValueError(f"concentration_type must be 'full' or 'shared', got {self.concentration_type!r}")
        if isinstance(self.init, str) and self.init not in ("k-means++", "random"):
            raise ValueError(f"init must be 'k-means++', 'random' or mean directions (K, d), got {self.init!r}")

    def _rows(self, X: Any, *, reset: bool) -> Tensor:
        least = 2 if reset else 1  # later, the number of features must be the fitted one, and that error says so
        X = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], order="C", ensure_min_features=least)
        if not X.flags.writeable:  # torch has no read-only tensors
            X = X.copy()
        return unit(torch.from_numpy(X), self.normalize, "X")

    def _weights(self, sample_weight: Any, x: Tensor) -> Tensor:
        """Weights (n,), at most one, zero where a row is zero."""
        if sample_weight is None:
            w = torch.ones(len(x), dtype=x.dtype, device="cpu")
        else:
            given = _check_sample_weight(sample_weight, x.numpy(), dtype=np.float64, copy=True)
            if (given < 0).any():
                raise ValueError(f"sample_weight must be non-negative, got {given.min()}")
            if not given.any():
                raise ValueError("sample_weight must not sum to zero")
            w = torch.from_numpy(given / given.max()).to(x.dtype)  # of any scale, also past the dtype's
        w = torch.where((x != 0).any(1), w, 0.0)
        count = int((w > 0).sum())
        if not count:
            raise ValueError("X has no row other than zeros with a positive weight: there is no direction to fit")
        if count < self.n_components:
            raise ValueError(
                f"n_components={self.n_components} must not exceed the number of points, n_samples={count} "
                "(rows of zeros and of weight zero do not count)"
            )
        return w

    # ---- fitting ------------------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> VonMisesFisherMixture:
        """Fit to rows ``X`` (n, d), with weights (n,) if given; ``y`` is ignored."""
        self._check_parameters()
        x = self._rows(X, reset=True)
        w = self._weights(sample_weight, x)
        random = check_random_state(self.random_state)
        best: tuple[list[float], bool, _Parameters] | None = None
        for i in range(self.n_init):
            run = self._climb(x, w, self._start(x, w, random), i)
            if best is None or run[0][-1] > best[0][-1]:
                best = run
        assert best is not None
        curve, self.converged_, found = best
        if not self.converged_:
            warnings.warn(
                f"EM stopped after max_iter={self.max_iter} steps with the mean log-likelihood still growing by more "
                f"than tol={self.tol}; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.mean_directions_, self.concentrations_, self.weights_ = (t.to(x.dtype).numpy() for t in found)
        self.log_likelihood_curve_ = np.array(curve)
        self.lower_bound_, self.n_iter_ = curve[-1], len(curve) - 1
        return self

    def _climb(self, x: Tensor, w: Tensor, now: _Parameters, run: int) -> tuple[list[float], bool, _Parameters]:
        """EM from a start: the likelihood before each step and after the last, whether it settled, where it ended."""
        steps: Any = range(self.max_iter)
        if self.verbose:
            from ._cli.progress import progress

            steps = progress(steps, f"EM, start {run + 1} of {self.n_init}")
        total = w.sum(dtype=torch.float64)

        def expect() -> tuple[float, Tensor, Tensor]:
            with torch.no_grad():
                logs, mass, first = affine_moments(x, *now.affine(x.dtype), w)
            return float((logs.double() @ w.double()) / total), mass, first

        level, mass, first = expect()
        curve = [level]
        for _ in steps:
            now = self._maximise(mass, first, now)
            level, mass, first = expect()
            curve.append(level)
            if curve[-1] - curve[-2] < self.tol:
                return curve, True, now
        return curve, False, now

    def _maximise(self, mass: Tensor, first: Tensor, last: _Parameters | None = None) -> _Parameters:
        """The M step: parameters from masses (K,) and sums (K, d)."""
        directions, k = estimate(first, mass)
        lengths = torch.linalg.vector_norm(first, dim=1)
        if self.concentration_type == "shared":
            pooled = torch.zeros_like(first[0])
            pooled[0] = lengths.sum()
            k = estimate(pooled, mass.sum())[1].expand(len(mass))
        lost = ~(lengths > 0)  # no point left: direction and concentration stay as they were
        if last is not None:
            directions = torch.where(lost[:, None], last.means, directions)
            if self.concentration_type != "shared":
                k = torch.where(lost, last.concentrations, k)
        return _Parameters(directions, k.nan_to_num(nan=0.0).clamp(max=self.max_concentration), mass / mass.sum())

    # ---- starts -------------------------------------------------------------------------------------------------
    def _start(self, x: Tensor, w: Tensor, random: np.random.RandomState) -> _Parameters:
        """Means from ``init``; one concentration for all, from the rows around their nearest mean; equal weights."""
        x, w = systematic(x, w, max(_SEED_ROWS, 16 * self.n_components), random)
        if isinstance(self.init, str):
            means = x[plus_plus(x, w, self.n_components, random, greedy=self.init == "k-means++")]
        else:
            given = np.array(self.init, dtype=np.float64, order="C")
            if given.shape != (self.n_components, x.shape[1]):
                raise ValueError(f"init must have shape {(self.n_components, x.shape[1])}, got {given.shape}")
            if not np.isfinite(given).all() or not given.any(1).all():
                raise ValueError("init must hold finite mean directions other than zero")
            means = unit(torch.from_numpy(given), True, "init").to(x.dtype)
        nearest = (x @ means.t()).argmax(1)
        sums = torch.zeros(means.shape, dtype=torch.float64, device="cpu").index_add_(
            0, nearest, (x * w[:, None]).double()
        )
        pooled = torch.zeros(x.shape[1], dtype=torch.float64, device="cpu")
        pooled[0] = torch.linalg.vector_norm(sums, dim=1).sum()
        k = estimate(pooled, w.sum(dtype=torch.float64))[1].clamp(max=self.max_concentration)
        lengths = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
        means = torch.where(lengths > 0, sums / lengths, means.double())
        count = self.n_components
        return _Parameters(means, k.expand(count), torch.full((count,), 1 / count, dtype=torch.float64, device="cpu"))

    # ---- what a fitted mixture answers ----------------------------------------------------------------------------
    def _fitted(self) -> _Parameters:
        check_is_fitted(self)
        fitted = (self.mean_directions_, self.concentrations_, self.weights_)
        return _Parameters(*(torch.from_numpy(np.asarray(a, dtype=np.float64).copy()) for a in fitted))

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of each row, (n,)."""
        mixture = self._fitted()
        x = self._rows(X, reset=False)
        with torch.no_grad():
            return affine_logsumexp(x, *mixture.affine(x.dtype)).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows."""
        return float(self.score_samples(X).mean(dtype=np.float64))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior probability of each component, (n, K)."""
        mixture = self._fitted()
        x = self._rows(X, reset=False)
        with torch.no_grad():
            return affine_softmax(x, *mixture.affine(x.dtype))[1].numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of each row, (n,)."""
        return self.predict_proba(X).argmax(1)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """``fit`` and ``predict`` on the same rows."""
        return self.fit(X, y, sample_weight).predict(X)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Exact samples (n, d), sorted by component, and their components (n,).

        ``random_state`` is the estimator's own where not given: with an int, every call draws the same.
        """
        mixture = self._fitted()
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer >= 1, got {n_samples!r}")
        random = check_random_state(self.random_state if random_state is None else random_state)
        weights = mixture.weights.numpy()
        labels = np.repeat(np.arange(len(weights)), random.multinomial(n_samples, weights / weights.sum()))
        at = torch.from_numpy(labels)
        dtype = torch.from_numpy(np.empty(0, self.mean_directions_.dtype)).dtype
        seed = int(random.randint(0, 2**31 - 1))
        x = vmf.sample(mixture.means[at].to(dtype), mixture.concentrations[at].to(dtype), seed=seed)
        return x.numpy(), labels

    def _n_parameters(self) -> int:
        k, d = self.mean_directions_.shape
        return k * (d - 1) + (1 if self.concentration_type == "shared" else k) + k - 1

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on ``X``: the lower the better."""
        logs = self.score_samples(X)
        return -2 * float(logs.sum(dtype=np.float64)) + self._n_parameters() * math.log(len(logs))

    def aic(self, X: Any) -> float:
        """Akaike information criterion on ``X``: the lower the better."""
        return -2 * float(self.score_samples(X).sum(dtype=np.float64)) + 2 * self._n_parameters()
