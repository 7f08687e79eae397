"""Fused layers of denoisers: what lies between the matrix products of diffusion transformers and U-Nets.

Every function is one pass over memory, forward and backward, with a plain PyTorch reference in `fokker.reference`.
"""

from ._denoiser_embeddings import fourier_embedding, mp_fourier, timestep_embedding
from ._denoiser_gates import geglu, gelu_tanh, mp_silu, silu_gate, swiglu
from ._denoiser_groups import bias_free_norm, group_norm_silu
from ._denoiser_heads import qk_norm_rope, qkv_norm_rope
from ._denoiser_losses import denoising_score_matching, multiplicative_score_matching
from ._denoiser_losses_distill import DIVERGENCES, divergence_weight, score_difference
from ._denoiser_magnitude import mp_cat, mp_sum, pixel_norm
from ._denoiser_norms import gate_residual, layer_norm_modulate, residual_gate_norm_modulate, rms_norm_modulate
from ._denoiser_precondition import edm_precondition_in, edm_precondition_out
from ._denoiser_rope import rope_table, rope_table_2d

__all__ = [
    "DIVERGENCES",
    "bias_free_norm",
    "denoising_score_matching",
    "divergence_weight",
    "edm_precondition_in",
    "edm_precondition_out",
    "fourier_embedding",
    "gate_residual",
    "geglu",
    "gelu_tanh",
    "group_norm_silu",
    "layer_norm_modulate",
    "mp_cat",
    "mp_fourier",
    "mp_silu",
    "mp_sum",
    "multiplicative_score_matching",
    "pixel_norm",
    "qk_norm_rope",
    "qkv_norm_rope",
    "residual_gate_norm_modulate",
    "rms_norm_modulate",
    "rope_table",
    "rope_table_2d",
    "score_difference",
    "silu_gate",
    "swiglu",
    "timestep_embedding",
]
