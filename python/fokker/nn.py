r"""Modules of diffusion models whose elementwise parts are `fokker.denoiser`'s: the field's names, one pass each.

    from fokker import nn
    model = nn.DiT(input_size=32, depth=28, hidden_size=1152, num_heads=16)
    model.load_state_dict(torch.load("DiT-XL-2-256x256.pt"))

Parameters carry the names of published checkpoints: `DiT` those of facebookresearch/DiT (Peebles and Xie 2023), `FiT`
those of whlzy/FiT (Lu et al. 2024, Wang et al. 2024), `UNet` and `EDMPrecond` those of NVlabs/edm (Karras et al. 2022;
ADM, DDPM++ and NCSN++), the adaptive norms those of diffusers. Matrix products, convolutions and attention are torch's.
Under autocast a block keeps the dtype of its input, as torch's own promotion does. For less memory in training wrap the
blocks by torch's ``apply_activation_checkpointing``. For a model that exists, see `fokker.patch`.
"""

from ._nn_blocks import DiTBlock, FiTBlock
from ._nn_modulation import AdaLayerNormContinuous, AdaLayerNormZero, AdaLNLoRA, FinalLayer, TimestepEmbedding
from ._nn_resnet import ResnetBlock2D
from ._nn_transformers import DiT, FiT
from ._nn_unet import EDMPrecond, UNet

__all__ = [
    "AdaLNLoRA",
    "AdaLayerNormContinuous",
    "AdaLayerNormZero",
    "DiT",
    "DiTBlock",
    "EDMPrecond",
    "FiT",
    "FiTBlock",
    "FinalLayer",
    "ResnetBlock2D",
    "TimestepEmbedding",
    "UNet",
]
