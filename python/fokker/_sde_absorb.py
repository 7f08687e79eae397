"""The step of masked (absorbing) discrete diffusion: which positions open, and which token each becomes."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from ._elementwise import FLOATS
from ._op import Kernel, Op, native_kernels
from .random import Ids, _integer, _place
from .reference import absorb as reference

__all__ = ["absorb_step"]

_U64 = 2**64 - 1


def _reference(
    tokens: Tensor,
    logits: Tensor,
    probability: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    ids: Tensor | None,
    mask_id: int,
    temperature: float,
    seed_value: int,
    step_value: int,
    first: int,
) -> Tensor:
    if ids is None:
        ids = torch.arange(first, first + tokens.shape[0], device=tokens.device)
    return reference.absorb_step(
        tokens,
        logits.detach(),
        probability,
        mask_id=mask_id,
        seed=seed_value if seed is None else seed,
        step=step_value if step is None else step,
        sample_ids=ids,
        temperature=temperature,
    )


def _fake(tokens: Tensor, *args: Any) -> Tensor:
    return torch.empty(tokens.shape, dtype=torch.int64, device=tokens.device)


def _kernel(module: Any) -> Kernel:
    def run(
        tokens: Tensor,
        logits: Tensor,
        probability: Tensor,
        seed: Tensor | None,
        step: Tensor | None,
        ids: Tensor | None,
        mask_id: int,
        temperature: float,
        seed_value: int,
        step_value: int,
        first: int,
    ) -> Tensor:
        out = _fake(tokens)
        if logits.shape[-1] > 1 and logits.stride(-1) != 1:
            logits = logits.contiguous()
        module.absorb(
            tokens, logits, probability, mask_id, temperature, seed_value & _U64, seed, step_value, step, ids, first,
            out,
        )  # fmt: skip
        return out

    return run


def _triton(*args: Any) -> Tensor:
    from .triton_kernels import particles

    return particles.absorb_step(*args)


def _no_gradient(needs: Any, saved: Any, extra: Any, grad: Any) -> tuple[None, ...]:
    return (None,) * len(needs)  # a draw


op = Op(
    "sde_absorb(Tensor tokens, Tensor logits, Tensor probability, Tensor? seed_tensor, Tensor? step_tensor, "
    "Tensor? sample_ids, SymInt mask_id, float temperature, SymInt seed, SymInt step, SymInt first_id) -> Tensor",
    tensors=6,
    reference=_reference,
    fake=_fake,
    kernels={**native_kernels(_kernel), "triton": _triton},
    backward=_no_gradient,
)


def absorb_step(
    tokens: Tensor,
    logits: Tensor,
    probability: float | Tensor,
    *,
    mask_id: int,
    seed: int | Tensor,
    step: int | Tensor = 0,
    sample_ids: Ids = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""One step of masked diffusion: masked positions open with a probability, each to a token drawn from its logits.

    .. math:: P(\text{open}) = \rho_b, \qquad P(v \mid \text{open}) = \mathrm{softmax}(\text{logits} / T)_v,\ v \ne m

    drawn by a Gumbel race inside the kernel: the logits of the positions that open are read once, those of the others
    not at all, and neither a softmax nor noise is stored. The race keeps tokens down to a probability of about 1e-9
    (its exponentials are -log1p(-u) from all bits of u); whether a position opens, and to what, come from separate
    streams (5 and 6) of the counters of `fokker.random`: element l, and element l V + v of the sample.

    Args:
        tokens: (B, L) int64. Positions that do not hold ``mask_id`` stay as they are.
        logits: (B, L, V) of any float dtype; float64 for float64, else float32 arithmetic. nan and -inf are never
            drawn, nor is ``mask_id``; a position with nothing to draw stays masked.
        probability: rho, in [0, 1], a number or a float tensor (B,) or of one element (which is not checked): of a
            masked position from time t to s (t - s) / t for the log-linear schedule; 1 opens all.
        mask_id: the mask's token; it may lie outside [0, V).
        seed, step, sample_ids: as in `fokker.random`.
        temperature: T >= 0; at 0 the largest logit wins.

    Returns:
        (B, L) int64. Nothing is differentiable. ValueError and TypeError name the argument.

    Source: Sahoo et al. 2024 (arXiv 2406.07524), Ou et al. 2024 (2406.03736); Gumbel 1954.
    """
    for value, name in ((tokens, "tokens"), (logits, "logits")):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if tokens.dtype is not torch.int64:
        raise TypeError(f"tokens must have dtype int64, got {tokens.dtype}")
    if logits.dtype not in FLOATS:
        raise TypeError(f"logits must have dtype float32, float64, float16 or bfloat16, got {logits.dtype}")
    if tokens.dim() != 2:
        raise ValueError(f"tokens must have shape (batch, length), got {tuple(tokens.shape)}")
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} must be (batch, length, tokens to choose from) for tokens "
            f"{tuple(tokens.shape)}"
        )
    if logits.device != tokens.device:
        raise TypeError(f"logits is on {logits.device}, tokens on {tokens.device}: one device expected")
    batch = tokens.shape[0]
    if not isinstance(temperature, numbers.Real):
        raise TypeError(f"temperature must be a number, got {type(temperature).__name__}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")
    place = _place(tokens.device, seed, step, sample_ids, batch)
    return op(
        tokens, logits, _probability(probability, batch, tokens.device), *place[:3], _integer(mask_id, "mask_id"),
        float(temperature), *place[3:],
    )  # fmt: skip


def _probability(value: Any, batch: int, home: torch.device) -> Tensor:
    """(B,) in float32, without waiting for the device."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"probability must be a number or a float tensor, got dtype {value.dtype}")
        if value.device != home:
            raise TypeError(f"probability is on {value.device}, tokens on {home}: one device expected")
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, batch)):
            raise ValueError(f"probability must be a number or have shape ({batch},), got {tuple(value.shape)}")
        return value.detach().float().expand(batch)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"probability must be a number or a float tensor, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"probability must be in [0, 1], got {value}")
    return torch.full((1,), float(value), dtype=torch.float32, device=home).expand(batch)
