"""Gaussian mixtures in scikit-learn's interface: EM with weights, labels for some rows, and split and merge moves."""

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
from torch import Tensor

from . import mixture
from ._gaussian_em import Parameters, Rows, expect, maximise, n_parameters
from ._gaussian_start import split_and_merge, start

_TYPES = ("isotropic", "diag", "lowrank", "full", "tied")


class GaussianMixture(DensityMixin, BaseEstimator):
    r"""A mixture of Gaussians, fitted by expectation maximisation in float64, in tiles.

    Args:
        n_components: number of components K, at most the number of rows with a positive weight.
        covariance_type: "isotropic" (or "spherical"), "diag", "lowrank" (W W^T + t I, probabilistic principal
            components; Tipping and Bishop 1999), "full", or "tied" (one full covariance for all).
        rank: columns of W, lowrank only (at most d - 1).
        tol: stop where the mean log-likelihood (nats a row) grows by less than this.
        reg_covar: the smallest variance in any direction. It is a floor, not an addition as in scikit-learn: a
            covariance above it is the maximum-likelihood one, and the likelihood never falls.
        max_iter: largest number of EM steps of a start (and again after each accepted move).
        n_init: starts; the one with the highest likelihood is kept.
        init: "k-means++" (greedy, on features of unit variance, then ten steps of k-means), "random" rows, or means
            (K, d).
        split_merge: how many split and merge moves to try after EM has settled (Ueda et al. 2000); a move that does not
            raise the likelihood is undone.
        semi_supervised: take ``y`` of ``fit`` as labels, an integer from 0 to K - 1 for rows whose component is known
            and -1 for the others. Without it ``y`` is ignored, as scikit-learn has it.
        random_state: int, RandomState or None. verbose: show progress (tqdm where it is installed).

    Attributes:
        weights_ (K,), means_ (K, d), covariances_: (K,), (K, d), (K, d, d), (d, d) by type, in the dtype of the data;
            lowrank: the pair of factors (K, d, r) and variances (K,).
        lower_bound_: mean log-likelihood of the training data (labelled rows: jointly with their label), the last of
        log_likelihood_curve_: before the first step and after each; moves appear where they were accepted.
        converged_, n_iter_, n_features_in_.

    Errors: ValueError for empty or non-finite data, negative or all-zero weights, more components than points, labels
    that are no component, parameters out of range.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        rank: int = 1,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init: Any = "k-means++",
        split_merge: int = 0,
        semi_supervised: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.rank = rank
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init = init
        self.split_merge = split_merge
        self.semi_supervised = semi_supervised
        self.random_state = random_state
        self.verbose = verbose

    # ---- input ------------------------------------------------------------------------------------------------------
    def _check_parameters(self) -> None:
        for name, least in (("n_components", 1), ("max_iter", 1), ("n_init", 1), ("rank", 1), ("split_merge", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        for name in ("tol", "reg_covar"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
        if self._kind not in _TYPES:
            raise ValueError(f"covariance_type must be one of {', '.join(_TYPES)}, got {self.covariance_type!r}")
        if isinstance(self.init, str) and self.init not in ("k-means++", "random"):
            raise ValueError(f"init must be 'k-means++', 'random' or means (K, d), got {self.init!r}")

    @property
    def _kind(self) -> str:
        return "isotropic" if self.covariance_type == "spherical" else self.covariance_type

    def _array(self, X: Any, *, reset: bool) -> np.ndarray:
        X = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], order="C")
        return X if X.flags.writeable else X.copy()  # torch has no read-only tensors

    def _rows(self, x: Tensor, y: Any, sample_weight: Any) -> Rows:
        if sample_weight is None:
            w = torch.ones(len(x), dtype=torch.float64, device="cpu")
        else:
            given = _check_sample_weight(sample_weight, x.numpy(), dtype=np.float64, copy=True)
            if (given < 0).any():
                raise ValueError(f"sample_weight must be non-negative, got {given.min()}")
            if not given.any():
                raise ValueError("sample_weight must not sum to zero")
            w = torch.from_numpy(given / given.max())
        count = int((w > 0).sum())
        if count < self.n_components:
            raise ValueError(
                f"n_components={self.n_components} must not exceed the number of points, n_samples={count} "
                "(rows of weight zero do not count)"
            )
        return Rows(x, w, self._labels(y, len(x)) if self.semi_supervised and y is not None else None)

    def _labels(self, y: Any, n: int) -> Tensor:
        labels = np.asarray(y)
        if labels.shape != (n,):
            raise ValueError(f"y must have shape ({n},), got {labels.shape}")
        whole = labels.astype(np.int64) if labels.dtype.kind in "biuf" else np.full(n, -2)
        if not (whole == labels).all() or whole.min() < -1 or whole.max() >= self.n_components:
            raise ValueError(f"y must hold integers from -1 (unknown) to n_components - 1 = {self.n_components - 1}")
        return torch.from_numpy(whole)

    def _centres(self, d: int) -> str | Tensor:
        if isinstance(self.init, str):
            return self.init
        given = np.array(self.init, dtype=np.float64, order="C")
        if given.shape != (self.n_components, d):
            raise ValueError(f"init must have shape {(self.n_components, d)}, got {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError("init must hold finite means")
        return torch.from_numpy(given)

    # ---- fitting ----------------------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> GaussianMixture:
        """Fit to rows ``X`` (n, d), with weights (n,) if given; ``y`` (n,) are labels with ``semi_supervised``."""
        self._check_parameters()
        x = torch.from_numpy(self._array(X, reset=True))
        rows = self._rows(x, y, sample_weight)
        centres = self._centres(x.shape[1])
        if self._kind == "lowrank" and not self.rank < x.shape[1]:
            raise ValueError(f"rank must be below the number of features, {x.shape[1]}, got {self.rank}")
        random = check_random_state(self.random_state)
        best: tuple[list[float], bool, Parameters] | None = None
        with torch.no_grad():
            for i in range(self.n_init):
                first = start(rows, self._kind, self.n_components, self.rank, centres, self.reg_covar, random)
                run = self._moves(rows, self._climb(rows, first, f"EM, start {i + 1} of {self.n_init}"), random)
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
        self.weights_, self.means_ = (t.to(x.dtype).numpy() for t in (found.weights, found.means))
        parts = tuple(t.to(x.dtype).numpy() for t in found.covariance)
        self.covariances_ = parts if len(parts) > 1 else parts[0][0] if self._kind == "tied" else parts[0]
        self.log_likelihood_curve_ = np.array(curve)
        self.lower_bound_, self.n_iter_ = curve[-1], len(curve) - 1
        return self

    def _climb(self, rows: Rows, now: Parameters, label: str) -> tuple[list[float], bool, Parameters]:
        """EM from a start: the likelihood before each step and after the last, whether it settled, where it ended."""
        steps: Any = range(self.max_iter)
        if self.verbose:
            from ._cli.progress import progress

            steps = progress(steps, label)
        total = float(rows.weights.sum())
        sums = expect(rows, now)
        curve = [sums.log_likelihood / total]
        for _ in steps:
            now = maximise(sums, now, self.reg_covar)
            sums = expect(rows, now)
            curve.append(sums.log_likelihood / total)
            if curve[-1] - curve[-2] < self.tol:
                return curve, True, now
        return curve, False, now

    def _moves(self, rows: Rows, run: tuple[list[float], bool, Parameters], random: Any) -> Any:
        """Split and merge until no move of those left raises the likelihood by more than ``tol``."""
        left = self.split_merge if self.n_components > 2 else 0
        while left > 0:
            for candidate in split_and_merge(rows, run[2], left, self.reg_covar, random):
                left -= 1
                other = self._climb(rows, candidate, "split and merge")
                if other[0][-1] > run[0][-1] + self.tol:
                    # only the steps after the move had paid off: the curve never falls
                    higher = [v for v in other[0] if v > run[0][-1]]
                    run = (run[0] + higher, other[1], other[2])
                    break
            else:
                break
        return run

    # ---- what a fitted mixture answers ----------------------------------------------------------------------------
    @property
    def mixture_(self) -> mixture.Mixture:
        """The fitted mixture for the functions of `fokker.mixture` (NumPy in, NumPy out)."""
        check_is_fitted(self)
        kind = "full" if self._kind == "tied" else self._kind
        return mixture.Mixture(self.means_, self.covariances_, self.weights_, kind)

    def _evaluate(self, X: Any, name: str) -> np.ndarray:
        found = self.mixture_
        return mixture.evaluate(self._array(X, reset=False), found, outputs=(name,))[name]

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of each row, (n,)."""
        return self._evaluate(X, "log_prob")

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows."""
        return float(self.score_samples(X).mean(dtype=np.float64))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior probability of each component, (n, K)."""
        return self._evaluate(X, "responsibilities")

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of each row, (n,)."""
        return self.predict_proba(X).argmax(1)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """``fit`` and ``predict`` on the same rows."""
        return self.fit(X, y, sample_weight).predict(X)

    def anomaly_score(self, X: Any, *, kind: str = "log_prob", keep: int | float = 1.0, by: str = "weight") -> Any:
        """`fokker.mixture.anomaly_score` of each row, (n,)."""
        found = self.mixture_
        return mixture.anomaly_score(self._array(X, reset=False), found, kind=kind, keep=keep, by=by)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Samples (n, d) and their components (n,), sorted by component.

        ``random_state`` is the estimator's own where not given: with an int, every call draws the same.
        """
        found = self.mixture_
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer >= 1, got {n_samples!r}")
        random = check_random_state(self.random_state if random_state is None else random_state)
        seed = int(random.randint(0, 2**31 - 1))
        x, labels = mixture.sample(found, int(n_samples), seed=seed, return_components=True)
        order = np.argsort(labels, kind="stable")
        return x[order], labels[order]

    def _n_parameters(self) -> int:
        return n_parameters(self._kind, *self.means_.shape, self.rank)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on ``X``: the lower the better."""
        logs = self.score_samples(X)
        return -2 * float(logs.sum(dtype=np.float64)) + self._n_parameters() * math.log(len(logs))

    def aic(self, X: Any) -> float:
        """Akaike information criterion on ``X``: the lower the better."""
        return -2 * float(self.score_samples(X).sum(dtype=np.float64)) + 2 * self._n_parameters()
