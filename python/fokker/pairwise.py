r"""Measures made of sums over pairs of points: discrepancies, dependence, ensemble scores, transport, regression.

Kernel sums take the fused kernels of `fokker.kde`; sums of distances go by tiles, those of one dimension by a sort.
Nothing of the size N x M is held, in the forward or the backward pass, but where a page says so. The reference backend
and `torch.func` transforms take the plain definitions of `fokker.reference.pairwise`, which hold such arrays.

Clouds are tensors ``(..., N, d)``, or NumPy arrays (then so are the results); leading dimensions broadcast. Kernels are
computed in the dtype of the points (float16 and bfloat16 through float32), distances and sums over points in float64.
Weights are not negative and are scaled to sum to one. A NaN makes the results of its own batch NaN.
"""

from ._pairwise_distances import (
    distance_correlation,
    distance_covariance,
    energy_distance,
    joint_distance_covariance,
)
from ._pairwise_kernels import (
    KERNELS,
    MultiPopulation,
    bandwidth_ladder,
    median_bandwidth,
    mmd2,
    multi_population_objective,
)
from ._pairwise_sampling import characteristic_discrepancy, cmixup_sample
from ._pairwise_scores import crps, energy_score
from ._pairwise_similarity import alignment, nadaraya_watson, uniformity, vendi_score
from ._pairwise_transport import Transport, sinkhorn

__all__ = [
    "KERNELS",
    "MultiPopulation",
    "Transport",
    "alignment",
    "bandwidth_ladder",
    "characteristic_discrepancy",
    "cmixup_sample",
    "crps",
    "distance_correlation",
    "distance_covariance",
    "energy_distance",
    "energy_score",
    "joint_distance_covariance",
    "median_bandwidth",
    "mmd2",
    "multi_population_objective",
    "nadaraya_watson",
    "sinkhorn",
    "uniformity",
    "vendi_score",
]
