"""fokker: fused kernels for score-based models and densities, each held against a plain PyTorch reference."""

from . import bessel, denoiser, kde, mixture, pairwise, random, sde, vmf
from ._backend import BackendError, available_backends, set_backend, use_backend
from ._native import CudaError
from ._version import __version__

__all__ = [
    "BackendError",
    "CudaError",
    "__version__",
    "available_backends",
    "bessel",
    "denoiser",
    "kde",
    "mixture",
    "pairwise",
    "random",
    "sde",
    "set_backend",
    "use_backend",
    "vmf",
]
