"""The U-Nets of ADM, DDPM++ and NCSN++, and EDM's preconditioning around a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._nn_modulation import choice
from ._nn_resnet import GroupNorm, Resampled, ResnetBlock2D
from .denoiser import edm_precondition_in, edm_precondition_out, fourier_embedding, timestep_embedding

ARCHITECTURES = ("adm", "ddpm++", "ncsn++")


class FourierFrequencies(nn.Module):
    """cos and sin of 2 pi f t at fixed normal frequencies; buffer ``freqs``."""

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return fourier_embedding(t, self.freqs, dtype=dtype)


class UNet(nn.Module):
    r"""A U-Net of Karras et al. 2022 (EDM, table 7): ADM, DDPM++ or NCSN++, with the names of NVlabs/edm.

    ``forward(x, noise_labels, class_labels=None, augment_labels=None)``: x (B, in_channels, R, R), noise_labels (B,),
    class_labels (B, label_dim) (one-hot), augment_labels (B, augment_dim); returns (B, out_channels, R, R), in the
    layout of x.

    ``architecture`` "adm" (``DhariwalUNet``: modulation in the norms, heads of 64 channels, attention in every block of
    its resolutions), "ddpm++" or "ncsn++" (``SongUNet``: shifts alone, one head, sums scaled by 2^{-1/2}; NCSN++ has
    Fourier features, resampling by (1, 3, 3, 1) and a residual path of the image beside the encoder).
    Unset arguments are those of the architecture: ImageNet-64's ADM, CIFAR-10's DDPM++ and NCSN++.

    ``state_dict`` holds ``map_layer0.*``, ``map_layer1.*``, ``map_label.*``, ``map_augment.weight``,
    ``enc.{res}x{res}_...``, ``dec.{res}x{res}_...`` (`ResnetBlock2D`), and the output's norm and convolution.

    Raises ValueError for an unknown architecture and sizes that do not divide.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int = 3,
        out_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        architecture: str = "adm",
        model_channels: int | None = None,
        channel_mult: Sequence[int] | None = None,
        num_blocks: int | None = None,
        attn_resolutions: Sequence[int] | None = None,
        dropout: float | None = None,
        label_dropout: float = 0.0,
        channels_per_head: int = 64,
    ) -> None:
        super().__init__()
        choice("architecture", architecture, *ARCHITECTURES)
        adm, residual = architecture == "adm", architecture == "ncsn++"
        width = model_channels or (192 if adm else 128)
        mults = tuple(channel_mult or ((1, 2, 3, 4) if adm else (2, 2, 2)))
        blocks = num_blocks or (3 if adm else 4)
        attended = tuple(attn_resolutions if attn_resolutions is not None else ((32, 16, 8) if adm else (16,)))
        if img_resolution % 2 ** (len(mults) - 1):
            raise ValueError(f"img_resolution ({img_resolution}) must halve {len(mults) - 1} times")
        self.adm, self.label_dropout, self.coarsest = adm, label_dropout, 2 ** (len(mults) - 1)
        emb, noise = 4 * width, width * (2 if residual else 1)
        taps = (1, 3, 3, 1) if residual else (1, 1)
        rate = dropout if dropout is not None else 0.1 if adm else 0.13
        options: dict[str, Any] = {"emb_channels": emb, "dropout": rate}
        if not adm:
            options |= {"skip_scale": 0.5**0.5, "eps": 1e-6, "taps": taps}
            options |= {"project_resampled": True, "adaptive_scale": False}

        def block(inward: int, outward: int, attention: bool = False, **more: bool) -> ResnetBlock2D:
            heads = 0 if not attention else max(1, outward // channels_per_head) if adm else 1
            return ResnetBlock2D(inward, outward, heads=heads, **options, **more)

        self.width = width
        self.map_noise = FourierFrequencies(noise) if residual else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)
        self.map_label = nn.Linear(label_dim, emb if adm else noise, bias=not adm) if label_dim else None

        self.enc, skips = nn.ModuleDict(), []
        c = image = in_channels
        for level, mult in enumerate(mults):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == 0:
                c = width * mult if adm else width
                self.enc[f"{at}_conv"] = Resampled(in_channels, c, 3)
            else:
                self.enc[f"{at}_down"] = block(c, c, down=True)
                if residual:
                    self.enc[f"{at}_aux_residual"] = Resampled(image, c, 3, down=True, taps=taps, filter_last=True)
                    image = c
            skips.append(c)
            for i in range(blocks):
                c, before = width * mult, c
                self.enc[f"{at}_block{i}"] = block(before, c, img_resolution >> level in attended)
                skips.append(c)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(mults))):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == len(mults) - 1:
                self.dec[f"{at}_in0"] = block(c, c, attention=True)
                self.dec[f"{at}_in1"] = block(c, c)
            else:
                self.dec[f"{at}_up"] = block(c, c, up=True)
            for i in range(blocks + 1):
                c, before = width * mult, c + skips.pop()
                here = img_resolution >> level in attended and (adm or i == blocks)
                self.dec[f"{at}_block{i}"] = block(before, c, here)
        norm, conv = GroupNorm(c, 1e-5 if adm else 1e-6), Resampled(c, out_channels, 3, zero=True)
        if adm:
            self.out_norm, self.out_conv = norm, conv
        else:
            self.dec[f"{at}_aux_norm"], self.dec[f"{at}_aux_conv"] = norm, conv

    def _embedding(self, noise_labels: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        dtype = self.map_layer0.weight.dtype
        if self.map_noise is not None:
            emb = self.map_noise(noise_labels, dtype)
        else:
            shift = float(not self.adm)
            emb = timestep_embedding(noise_labels, self.width, downscale_freq_shift=shift, dtype=dtype)
        if not self.adm:  # sines first
            emb = emb.unflatten(1, (2, -1)).flip(1).flatten(1)
        given = None
        if self.map_label is not None and labels is not None:
            if self.training and self.label_dropout:
                kept = torch.rand(labels.shape[0], 1, device=labels.device) >= self.label_dropout
                labels = labels * kept.to(labels.dtype)
            given = self.map_label(labels.to(dtype) * (1.0 if self.adm else math.sqrt(self.map_label.in_features)))
        if not self.adm and given is not None:
            emb = emb + given
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment.to(dtype))
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.adm and given is not None:
            emb = emb + given
        return F.silu(emb)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        if any(n % self.coarsest for n in x.shape[2:]):
            sides = " x ".join(map(str, x.shape[2:]))
            raise ValueError(f"x must hold images whose sides are multiples of {self.coarsest}, not {sides}")
        emb = self._embedding(noise_labels, class_labels, augment_labels)
        skips: list[Tensor] = []
        image = x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = skips[-1] = image = (x + layer(image)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, ResnetBlock2D) else layer(x)
                skips.append(x)
        for layer in self.dec.values():
            if isinstance(layer, ResnetBlock2D):
                if x.shape[1] != layer.in_channels:
                    x = torch.cat((x, skips.pop()), 1)
                x = layer(x, emb)
            else:  # the last norm, with its silu, and convolution
                x = layer(x)
        return self.out_conv(self.out_norm(x)) if self.adm else x


class EDMPrecond(nn.Module):
    r"""D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) around a network F (Karras et al. 2022, table 1).

    ``forward(x, sigma, class_labels=None, **more)``: x (B, ...), sigma a number, () or (B,); class_labels and more are
    passed on. With ``label_dim`` and no class_labels: zeros. Parameters ``model.*`` (NVlabs/edm).
    """

    def __init__(self, model: nn.Module, sigma_data: float = 0.5, label_dim: int = 0) -> None:
        super().__init__()
        self.model, self.sigma_data, self.label_dim = model, sigma_data, label_dim

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, **more: Any) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        if sigma.numel() not in (1, x.shape[0]):
            raise ValueError(f"sigma must have one entry or {x.shape[0]}, one a sample, not {tuple(sigma.shape)}")
        sigma = sigma.reshape(-1).expand(x.shape[0])
        if self.label_dim and class_labels is None:
            class_labels = x.new_zeros(x.shape[0], self.label_dim)
        scaled, c_noise = edm_precondition_in(x, sigma, self.sigma_data)
        f = self.model(scaled, c_noise, class_labels, **more)
        return edm_precondition_out(x, f.to(x.dtype), sigma, self.sigma_data)
