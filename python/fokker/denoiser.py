"""Fused layers of denoisers: what lies between the matrix products of diffusion transformers and U-Nets.

Every function is one pass over memory, forward and backward, with a plain PyTorch reference in `fokker.reference`.
"""

from ._denoiser_groups import bias_free_norm, group_norm_silu
from ._denoiser_norms import gate_residual, layer_norm_modulate, residual_gate_norm_modulate, rms_norm_modulate

__all__ = [
    "bias_free_norm",
    "gate_residual",
    "group_norm_silu",
    "layer_norm_modulate",
    "residual_gate_norm_modulate",
    "rms_norm_modulate",
]
