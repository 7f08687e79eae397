"""Clouds and calls that the tests of fokker.pairwise share."""

import math

import torch

from fokker import pairwise


def normal(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


X, Y = normal(3, 9, 4), normal(3, 11, 4, seed=6) + 0.4
A, B = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)).double(), torch.linspace(0, 2, 11).double()
UNIT = [t / t.norm(dim=-1, keepdim=True) for t in (X, Y)]
CALLS = {
    "mmd2": lambda x, y: pairwise.mmd2(x, y),
    "mmd2_ladder": lambda x, y: pairwise.mmd2(x, y, bandwidth=pairwise.bandwidth_ladder(3.0, 5)),
    "mmd2_weights": lambda x, y: pairwise.mmd2(
        x, y, bandwidth=[1.0, 3.0], estimator="unbiased", x_weights=A, y_weights=B
    ),
    **{
        f"mmd2_{k}": lambda x, y, k=k: pairwise.mmd2(x, y, bandwidth=2.0, kernel=k, nu=2.5)
        for k in pairwise.KERNELS[:-1]
    },
    "multi_population": lambda x, y: torch.stack(
        pairwise.multi_population_objective(x, y[..., :9, :], bandwidth=[2.0, 1.0])
    ),
    "energy": lambda x, y: pairwise.energy_distance(x, y),
    "energy_weights": lambda x, y: pairwise.energy_distance(x, y, estimator="unbiased", x_weights=A, y_weights=B),
    "energy_1d": lambda x, y: pairwise.energy_distance(x[..., :1], y[..., :1], x_weights=A),
    "energy_1d_unbiased": lambda x, y: pairwise.energy_distance(
        x[..., :1], y[..., :1], estimator="unbiased", y_weights=B
    ),
    "distance_covariance": lambda x, y: pairwise.distance_covariance(x, y[..., :9, 1:]),
    "distance_correlation": lambda x, y: pairwise.distance_correlation(x, y[..., :9, :1]),
    "bias_corrected": lambda x, y: pairwise.distance_correlation(x, y[..., :9, 1:], estimator="unbiased", squared=True),
    "joint": lambda x, y: pairwise.joint_distance_covariance(x[..., :2], y[..., :9, :], x[..., 2:], c=0.7),
    "joint_unbiased": lambda x, y: pairwise.joint_distance_covariance(
        x[..., :2], y[..., :9, :], x[..., 2:], estimator="unbiased", squared=True
    ),
    **{
        f"crps_{e}": lambda x, y, e=e: pairwise.crps(x[..., 0], y[..., 0, 0], estimator=e)
        for e in ("fair", "plain", "almost_fair")
    },
    "crps_weights": lambda x, y: pairwise.crps(x[..., 0], y[..., 0, 0], weights=A),
    "energy_score": lambda x, y: pairwise.energy_score(x, y[..., 0, :], estimator="almost_fair", alpha=0.7),
    "energy_score_weights": lambda x, y: pairwise.energy_score(x, y[..., 0, :], weights=A),
    "uniformity": lambda x, y: pairwise.uniformity(x),
    **{f"vendi_{o}": lambda x, y, o=o: pairwise.vendi_score(x, order=o, weights=A) for o in (0.5, 1.0, 2.0, math.inf)},
    **{
        f"vendi_2_{k}": lambda x, y, k=k: pairwise.vendi_score(x, order=2.0, kernel=k, bandwidth=2.0, nu=3.0, weights=A)
        for k in ("gaussian", "exponential", "laplace", "matern32", "student_t")
    },
    "characteristic": lambda x, y: pairwise.characteristic_discrepancy(
        x, y, frequencies=normal(6, 4, seed=8), frequency_weights=torch.arange(6), y_weights=B
    ),
}
