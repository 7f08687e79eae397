"""Samples of a Gaussian mixture from counter-based noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import random
from ._gaussian_parameters import Mixture, noise_level
from ._gaussian_tiles import Factors
from ._vmf_sampling import sample_shape_of

#: streams of `fokker.random`
_COMPONENT, _NOISE, _DIFFUSION = 0, 1, 2


def sample(
    mixture: Mixture,
    sample_shape: Any = (),
    *,
    alpha: float = 1.0,
    sigma: float = 0.0,
    return_components: bool = False,
    seed: int | None = None,
    step: int = 0,
    sample_ids: Any = None,
    generator: torch.Generator | None = None,
) -> Any:
    r"""Samples of alpha x_0 + sigma z, ``(*sample_shape, d)``; with ``return_components`` a pair with theirs.

    Sample i is a function of ``(seed, step, sample_ids[i])`` alone (see `fokker.random`): a uniform number chooses the
    component, normal ones are pushed through its covariance's root. ``sample_ids`` counts the samples in order.
    Not differentiable. ValueError and TypeError name what does not fit. In the dtype of means; NumPy where the mixture
    was given so.
    """
    shape = sample_shape_of(sample_shape)
    n = math.prod(shape)
    if seed is None:
        device = generator.device if generator is not None else "cpu"
        seed = int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device))
    elif generator is not None:
        raise ValueError("give seed or generator, not both")
    a, s = (noise_level(v, k, torch.Size(), mixture.means.device) for v, k in ((alpha, "alpha"), (sigma, "sigma")))
    place = {"seed": seed, "step": step, "sample_ids": sample_ids, "device": mixture.means.device}
    with torch.no_grad():
        w = mixture.weights.double()
        at = random.uniform(n, dtype=torch.float64, stream=_COMPONENT, **place)
        share = w.cumsum(0) / w.sum()
        last = torch.where(w > 0, torch.arange(len(w), device=w.device), 0).amax()
        label = torch.searchsorted(share, at).clamp(max=last)  # u in (0, 1]: a component of weight 0 has no u
        f = mixture.factors()
        wide = mixture.dim + (f.base.shape[-1] if f.kind == "lowrank" else 0)  # type: ignore[union-attr]
        noise = random.normal(n, wide, dtype=torch.float64, stream=_NOISE, **place)
        x = mixture.means.double()[label] + _rooted(f, noise, label, mixture)
        if float(a) != 1.0 or float(s) != 0.0:
            z = random.normal(n, mixture.dim, dtype=torch.float64, stream=_DIFFUSION, **place)
            x = a * x + s * z
        x, label = x.to(mixture.means.dtype).reshape(*shape, mixture.dim), label.reshape(shape)
    if mixture.numpy:
        x, label = x.numpy(), label.numpy()
    return (x, label) if return_components else x


def _rooted(f: Factors, noise: Tensor, label: Tensor, mixture: Mixture) -> Tensor:
    """S^(1/2) z by component."""
    d = mixture.dim
    out = torch.empty_like(noise[:, :d])
    for k in label.unique().tolist():
        at, j = label == k, 0 if mixture.shared else k
        z = noise[at]
        if f.kind == "lowrank":
            out[at] = z[:, d:] @ f.base[j].mT + torch.sqrt(f.noise[j]) * z[:, :d]
        elif f.kind == "full":
            out[at] = (z * torch.sqrt(f.values[j])) @ f.vectors[j].mT
        else:
            out[at] = z * torch.sqrt(f.base[j])
    return out
