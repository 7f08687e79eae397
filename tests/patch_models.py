"""Small models of diffusers and timm, with inputs, for the tests of `fokker.patch`."""

import torch


def _normal(*shape):
    return torch.randn(*shape)


def dit():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    labels = torch.tensor([1, 3])
    return model, (_normal(2, 4, 8, 8),), {"timestep": torch.tensor([5, 700]), "class_labels": labels}


def pixart():
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=12, use_additional_conditions=False,
    )  # fmt: skip
    named = {"encoder_hidden_states": _normal(2, 3, 12), "timestep": torch.tensor([5, 700])}
    named["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return model, (_normal(2, 4, 8, 8),), named


def sd3():
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    named = {"encoder_hidden_states": _normal(2, 3, 12), "pooled_projections": _normal(2, 12)}
    return model, (_normal(2, 4, 8, 8),), {**named, "timestep": torch.tensor([5, 700])}


def flux():
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=12, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    ids = torch.stack([torch.zeros(8), torch.arange(8.0) // 4, torch.arange(8.0) % 4], 1)
    named = {"encoder_hidden_states": _normal(2, 3, 12), "pooled_projections": _normal(2, 12)}
    named |= {"timestep": torch.tensor([0.1, 0.7]), "img_ids": ids, "txt_ids": torch.zeros(3, 3)}
    return model, (_normal(2, 8, 4),), named


def sana():
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
        mlp_ratio=2.0, sample_size=8,
    )  # fmt: skip
    named = {"encoder_hidden_states": _normal(2, 3, 12), "timestep": torch.tensor([5, 700])}
    return model, (_normal(2, 4, 8, 8),), named


def unet_condition():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    return model, (_normal(2, 4, 8, 8), torch.tensor([5, 700]), _normal(2, 3, 12)), {}


def unet_scale_shift():
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4, resnet_time_scale_shift="scale_shift", downsample_type="resnet",
        upsample_type="resnet",
    )  # fmt: skip
    return model, (_normal(2, 3, 8, 8), torch.tensor([5, 700])), {}


def vision_transformer():
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=5, init_values=0.3, drop_path_rate=0.1
    )
    return model, (_normal(2, 3, 8, 8),), {}


DIFFUSERS = {
    "DiT": dit, "PixArt": pixart, "SD3": sd3, "Flux": flux, "Sana": sana, "U-Net with cross-attention": unet_condition,
    "U-Net with modulated norms": unet_scale_shift,
}  # fmt: skip


def made(make, dtype=torch.float32):
    """The model without a zero in its parameters, in evaluation, and its inputs, all of one dtype."""
    torch.manual_seed(0)
    model, args, kwargs = make()
    for p in model.parameters():
        p.data = torch.randn(p.shape) * (1 / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.3)
    cast = lambda v: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v  # noqa: E731
    return model.to(dtype).eval(), tuple(map(cast, args)), {k: cast(v) for k, v in kwargs.items()}
