"""Plain twins of `fokker.nn`'s models, written from the published definitions with torch.nn alone."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


def silu_linear(dim, out):
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, out))


class TimestepEmbedder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        weight = self.mlp[0].weight
        f = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        a = t.double()[:, None] * f
        return self.mlp(torch.cat([a.cos(), a.sin()], 1).to(weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, dim):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, y):
        return self.embedding_table(y)


class Attention(nn.Module):
    def __init__(self, dim, heads, norm=False, weight=False):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        if norm:
            self.q_norm = nn.LayerNorm(dim // heads, 1e-6, weight, bias=False)
            self.k_norm = nn.LayerNorm(dim // heads, 1e-6, weight, bias=False)
        self.norm = norm

    def forward(self, x, mask=None, angle=None):
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if angle is not None:
            q, k = (self.turned(z, angle[:, None]) for z in (q, k))
        weights = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            weights = weights.masked_fill(mask[:, None, None] == 0, -torch.inf)
        return self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))

    @staticmethod
    def turned(z, angle):
        pairs = torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1_g, self.fc1_x, self.fc2 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.silu(self.fc1_g(x)) * self.fc1_x(x))


class DiTBlock(nn.Module):
    def __init__(self, dim, heads, ratio=4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * ratio))
        self.adaLN_modulation = silu_linear(dim, 6 * dim)

    def forward(self, x, c):
        s1, a1, g1, s2, a2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + g1[:, None] * self.attn(modulate(self.norm1(x), s1, a1))
        return x + g2[:, None] * self.mlp(modulate(self.norm2(x), s2, a2))


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = silu_linear(dim, 2 * dim)

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PatchEmbed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.proj = layer


class DiT(nn.Module):
    def __init__(self, size, patch, channels, dim, depth, heads, classes):
        super().__init__()
        self.patch, self.out = patch, 2 * channels
        self.x_embedder = PatchEmbed(nn.Conv2d(channels, dim, patch, patch))
        self.t_embedder, self.y_embedder = TimestepEmbedder(dim), LabelEmbedder(classes, dim)
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2, dim), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(dim, heads) for _ in range(depth))
        self.final_layer = FinalLayer(dim, patch**2 * self.out)

    def forward(self, x, t, y):
        h = self.x_embedder.proj(x)
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            h = block(h, c)
        h = self.final_layer(h, c).reshape(-1, rows, columns, self.patch, self.patch, self.out)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), self.out, rows * self.patch, columns * self.patch)


class FiTBlock(nn.Module):
    def __init__(self, dim, heads, norm=False, weight=False, rank=None, large=False, plain=False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, heads, norm, weight)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim) if plain else SwiGLU(dim, 4 * dim if large else 8 * dim // 3)
        self.adaLN_modulation = silu_linear(dim, 6 * dim)
        if rank is not None:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, rank), nn.Linear(rank, 6 * dim))

    def forward(self, x, c, mask=None, angle=None, shared=0.0):
        s1, a1, g1, s2, a2, g2 = (self.adaLN_modulation(c) + shared).chunk(6, dim=1)
        x = x + g1[:, None] * self.attn(modulate(self.norm1(x), s1, a1), mask, angle)
        return x + g2[:, None] * self.mlp(modulate(self.norm2(x), s2, a2))


class FiT(nn.Module):
    def __init__(self, patch, channels, dim, depth, heads, classes, rank=None, **block):
        super().__init__()
        self.head = dim // heads
        self.x_embedder = PatchEmbed(nn.Linear(patch**2 * channels, dim))
        self.t_embedder, self.y_embedder = TimestepEmbedder(dim), LabelEmbedder(classes, dim)
        self.global_adaLN_modulation = silu_linear(dim, 6 * dim) if rank is not None else None
        self.blocks = nn.ModuleList(FiTBlock(dim, heads, rank=rank, **block) for _ in range(depth))
        self.final_layer = FinalLayer(dim, patch**2 * channels * (1 if rank is not None else 2))

    def forward(self, x, t, y, grid, mask=None):
        half = self.head // 2  # numbers of a head for each axis: the row's, then the column's
        f = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)
        angle = torch.cat([grid[:, axis].double()[..., None] * f for axis in (1, 0)], -1).to(x.dtype)
        c = self.t_embedder(t) + self.y_embedder(y)
        shared = 0.0 if self.global_adaLN_modulation is None else self.global_adaLN_modulation(c)
        h = self.x_embedder.proj(x)
        for block in self.blocks:
            h = block(h, c, mask, angle, shared)
        return self.final_layer(h, c)


# ---- U-Nets ---------------------------------------------------------------------------------------------------------
class Conv(nn.Module):
    """A convolution after (NCSN++'s image path: before) resampling by two with a separable filter."""

    def __init__(self, inward, outward, kernel, up=False, down=False, taps=(1, 1), filter_last=False):
        super().__init__()
        self.up, self.down, self.filter_last = up, down, filter_last
        if kernel:
            self.weight = nn.Parameter(torch.randn(outward, inward, kernel, kernel))
            self.bias = nn.Parameter(torch.randn(outward))
        else:
            self.weight = self.bias = None
        f = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", (f[:, None] * f / f.sum() ** 2)[None, None] if up or down else None)

    def forward(self, x):
        margin = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.resample_filter is not None:
            taps = self.resample_filter.shape[-1]
            pad = (taps - 1) // 2
            if self.filter_last:
                x = F.conv2d(x, self.weight, self.bias, padding=margin + pad)
                return self.filtered(x, 0)
            x = self.filtered(x, pad)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=margin)

    def filtered(self, x, pad):
        channels = x.shape[1]
        f = self.resample_filter.to(x.dtype).repeat(channels, 1, 1, 1)
        if self.up:
            return F.conv_transpose2d(x, 4 * f, stride=2, padding=pad, groups=channels)
        return F.conv2d(x, f, stride=2, padding=pad, groups=channels)


def group_norm(channels, eps):
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class UNetBlock(nn.Module):
    def __init__(self, inward, outward, emb, up=False, down=False, heads=0, scale=1.0, eps=1e-5, taps=(1, 1),
                 project=False, adaptive=True):  # fmt: skip
        super().__init__()
        self.in_channels, self.num_heads, self.dropout = inward, heads, 0.0
        self.skip_scale, self.adaptive_scale = scale, adaptive
        self.norm0, self.conv0 = group_norm(inward, eps), Conv(inward, outward, 3, up, down, taps)
        self.affine = nn.Linear(emb, outward * (2 if adaptive else 1))
        self.norm1, self.conv1 = group_norm(outward, eps), Conv(outward, outward, 3)
        self.skip = None
        if up or down or inward != outward:
            self.skip = Conv(inward, outward, 1 if project or inward != outward else 0, up, down, taps)
        if heads:
            self.norm2 = group_norm(outward, eps)
            self.qkv, self.proj = Conv(outward, 3 * outward, 1), Conv(outward, outward, 1)

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)))
        m = self.affine(emb)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = m.chunk(2, dim=1)
            h = F.silu(shift + self.norm1(h) * (1 + scale))
        else:
            h = F.silu(self.norm1(h + m))
        x = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            b, c, height, width = x.shape
            q, k, v = self.qkv(self.norm2(x)).reshape(b * self.num_heads, c // self.num_heads, 3, -1).unbind(2)
            w = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(c // self.num_heads)).softmax(2)
            a = torch.einsum("nqk,nck->ncq", w, v).reshape(b, c, height, width)
            x = (self.proj(a) + x) * self.skip_scale
        return x


class UNet(nn.Module):
    def __init__(self, size, kind, width, mults, blocks, attended, labels, augment, per_head=8):
        super().__init__()
        self.kind, self.width = kind, width
        adm, residual = kind == "adm", kind == "ncsn++"
        emb, noise = 4 * width, width * (2 if residual else 1)
        taps = (1, 3, 3, 1) if residual else (1, 1)
        more = {} if adm else {"scale": math.sqrt(0.5), "eps": 1e-6, "taps": taps, "project": True, "adaptive": False}

        def block(i, o, attention=False, **kw):
            heads = (o // per_head if adm else 1) if attention else 0
            return UNetBlock(i, o, emb, heads=heads, **more, **kw)

        if residual:
            self.map_noise = nn.Module()
            self.map_noise.register_buffer("freqs", torch.randn(noise // 2) * 16)
        self.map_augment = nn.Linear(augment, noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)
        self.map_label = nn.Linear(labels, emb, bias=False) if adm else nn.Linear(labels, noise)
        self.enc, self.dec, skips, image = nn.ModuleDict(), nn.ModuleDict(), [], 3
        for level, mult in enumerate(mults):
            r = size >> level
            if level == 0:
                c = width * mult if adm else width
                self.enc[f"{r}x{r}_conv"] = Conv(3, c, 3)
            else:
                self.enc[f"{r}x{r}_down"] = block(c, c, down=True)
                if residual:
                    self.enc[f"{r}x{r}_aux_residual"] = Conv(image, c, 3, down=True, taps=taps, filter_last=True)
                    image = c
            skips.append(c)
            for i in range(blocks):
                self.enc[f"{r}x{r}_block{i}"] = block(c, width * mult, r in attended)
                c = width * mult
                skips.append(c)
        for level in reversed(range(len(mults))):
            r = size >> level
            if level == len(mults) - 1:
                self.dec[f"{r}x{r}_in0"], self.dec[f"{r}x{r}_in1"] = block(c, c, True), block(c, c)
            else:
                self.dec[f"{r}x{r}_up"] = block(c, c, up=True)
            for i in range(blocks + 1):
                attention = r in attended and (adm or i == blocks)
                self.dec[f"{r}x{r}_block{i}"] = block(c + skips.pop(), width * mults[level], attention)
                c = width * mults[level]
        if adm:
            self.out_norm, self.out_conv = group_norm(c, 1e-5), Conv(c, 3, 3)
        else:
            self.dec[f"{size}x{size}_aux_norm"] = group_norm(c, 1e-6)
            self.dec[f"{size}x{size}_aux_conv"] = Conv(c, 3, 3)

    def embedding(self, t, y, augment):
        dtype = self.map_layer0.weight.dtype
        if self.kind == "ncsn++":
            a = t[:, None].double() * (2 * math.pi * self.map_noise.freqs.double())
        else:
            half = self.width // 2
            steps = torch.arange(half, dtype=torch.float64) / (half - (self.kind == "ddpm++"))
            a = t[:, None].double() * 10000.0**-steps
        if self.kind == "adm":
            emb = torch.cat([a.cos(), a.sin()], 1).to(dtype) + self.map_augment(augment)
            emb = self.map_layer1(F.silu(self.map_layer0(emb))) + self.map_label(y)
            return F.silu(emb)
        emb = torch.cat([a.sin(), a.cos()], 1).to(dtype)
        emb = emb + self.map_label(y * math.sqrt(y.shape[1])) + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x, t, y, augment):
        emb, skips, image = self.embedding(t, y, augment), [], x
        for name, layer in self.enc.items():
            if "aux_residual" in name:
                x = skips[-1] = image = (x + layer(image)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                x = layer(x if x.shape[1] == layer.in_channels else torch.cat([x, skips.pop()], dim=1), emb)
            else:
                x = F.silu(layer(x)) if "aux_norm" in name else layer(x)
        return self.out_conv(F.silu(self.out_norm(x))) if self.kind == "adm" else x


def precondition(model, x, sigma, sigma_data=0.5):
    """D(x, sigma) of Karras et al. 2022, table 1."""
    s = sigma[:, None, None, None]
    total = s**2 + sigma_data**2
    f = model(x / total.sqrt(), sigma.log() / 4)
    return sigma_data**2 / total * x + s * sigma_data / total.sqrt() * f
