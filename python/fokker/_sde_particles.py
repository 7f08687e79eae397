"""Resampling of weighted particles: effective sample size, ancestors by four methods, and the gather."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._elementwise import FLOATS
from ._op import Kernel, Op, native_kernels
from .random import Ids, Stream, _integer, _place, _within
from .reference import particles as reference

__all__ = ["Resampled", "effective_sample_size", "gather", "resample"]

METHODS = reference.METHODS
_U64 = 2**64 - 1


# ---- the op ---------------------------------------------------------------------------------------------------------
def _fake(log_weights: Tensor, seed: Any, step: Any, ids: Any, method: int, count: int, *rest: Any) -> Any:
    groups = log_weights.shape[0]
    return (
        log_weights.new_empty(groups, count, dtype=torch.int64),
        log_weights.new_empty(groups, count),
        log_weights.new_empty(groups),
    )


def _reference(
    log_weights: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    ids: Tensor | None,
    method: int,
    count: int,
    threshold: float | None,
    seed_value: int,
    step_value: int,
    stream: int,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if ids is None:
        ids = torch.arange(first, first + log_weights.shape[0], device=log_weights.device)
    return reference.resample(
        log_weights.detach(),
        METHODS[method],
        seed=seed_value if seed is None else seed,
        step=step_value if step is None else step,
        stream=stream,
        sample_ids=ids,
        count=count,
        threshold=threshold,
    )


def _kernel(module: Any) -> Kernel:
    def run(
        log_weights: Tensor,
        seed: Tensor | None,
        step: Tensor | None,
        ids: Tensor | None,
        method: int,
        count: int,
        threshold: float | None,
        seed_value: int,
        step_value: int,
        stream: int,
        first: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_weights = log_weights.contiguous()
        found = _fake(log_weights, seed, step, ids, method, count)
        work = None
        if module.sde_tile:  # on a GPU the cumulative weights go through memory
            work = torch.empty(2 * log_weights.numel(), dtype=torch.float64, device=log_weights.device)
        limit = -1.0 if threshold is None else threshold
        module.resample(
            log_weights, method, limit, seed_value & _U64, seed, step_value, step, stream, ids, first, *found, work
        )
        return found

    return run


def _triton(log_weights: Tensor, seed: Any, step: Any, ids: Any, method: int, count: int, *rest: Any) -> Any:
    from .triton_kernels import particles

    return particles.resample(
        log_weights, seed, step, ids, method, *rest, _fake(log_weights, seed, step, ids, method, count)
    )


def _no_gradient(needs: Any, saved: Any, extra: Any, *grads: Any) -> tuple[None, ...]:
    return (None,) * len(needs)  # which particles survive is a matter of chance


#: (ancestors (G, count), new log weights (G, count), effective sample sizes (G,)) of log weights (G, N)
op = Op(
    "sde_resample(Tensor log_weights, Tensor? seed_tensor, Tensor? step_tensor, Tensor? sample_ids, int method, "
    "SymInt count, float? threshold, SymInt seed, SymInt step, int stream, SymInt first_id) "
    "-> (Tensor, Tensor, Tensor)",
    tensors=4,
    reference=_reference,
    fake=_fake,
    kernels={**native_kernels(_kernel), "triton": _triton},
    backward=_no_gradient,
)


# ---- public functions -----------------------------------------------------------------------------------------------
class Resampled(NamedTuple):
    """What `resample` returns."""

    #: (..., M) int64: which particle each offspring descends from
    ancestors: Tensor
    #: (..., M): 0 where the group was resampled, else as they were
    log_weights: Tensor
    #: (...,): of the weights before
    effective_sample_size: Tensor


def _weights(log_weights: Any) -> None:
    if not isinstance(log_weights, Tensor):
        raise TypeError(f"log_weights must be a tensor, got {type(log_weights).__name__}")
    if log_weights.dtype not in FLOATS:
        raise TypeError(f"log_weights must have dtype float32, float64, float16 or bfloat16, got {log_weights.dtype}")
    if log_weights.dim() < 1 or log_weights.shape[-1] == 0:
        raise ValueError(f"log_weights must have shape (..., N), N >= 1, got {tuple(log_weights.shape)}")


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""The effective number of particles of each group, between 1 and N.

    .. math:: (\sum_j w_j)^2 / \sum_j w_j^2, \qquad w = \exp(\text{log\_weights})

    log_weights (..., N) of any float dtype -> (...,); adding a constant to a group changes nothing. Differentiable.
    nan where no weight is positive or one is not finite. Source: Kong, Liu and Wong 1994; Liu 2001, 2.5.3.
    """
    _weights(log_weights)
    return reference.effective_sample_size(log_weights)


def resample(
    log_weights: Tensor,
    method: str = "systematic",
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    stream: int = Stream.RESAMPLING,
    sample_ids: Ids = None,
    count: int | None = None,
    threshold: float | None = None,
    check: bool = False,
) -> Resampled:
    r"""Ancestors of the next generation of particles, group by group, without leaving the device.

    With C the cumulative weights of a group divided by their sum and u float64 uniform numbers in (0, 1] made from the
    group's counters, offspring i descends from the first particle j with C_j >= p_i:

        systematic   p_i = (i + u_0) / M
        stratified   p_i = (i + u_i) / M
        multinomial  p_i = u_i
        residual     floor(M w_j / sum w) copies of each j, then draws from what is left

    Every method gives particle j on average M w_j / sum w offspring; a particle of weight 0 (log weight -inf) has none.

    Args:
        log_weights: (..., N) of any float dtype; a constant may be added to each group.
        method: "systematic", "stratified", "multinomial" or "residual".
        seed, step, stream: as in `fokker.random`; each step of a sampler wants its own ``step``.
        sample_ids: the ids of the groups, in the order of the flattened leading shape; an int i: i, i + 1, ...
        count: M, how many offspring a group has; None: N.
        threshold: only groups whose effective sample size is below ``threshold * N`` are resampled. The others keep
            their particles (ancestors 0, 1, ...) and their weights, which accumulate until they are. Needs M = N.
        check: raise ValueError where a group has no positive weight, or nan or +inf among them. Waits for the device.
            Unchecked such a group keeps its particles and weights, and its effective sample size is nan.

    Returns:
        `Resampled` (ancestors (..., M) int64, log_weights (..., M), effective_sample_size (...,)). The noise of a step
        after resampling belongs to the place of a particle (its sample id), not to its ancestor: twins must part.

    Nothing is differentiable. ValueError, TypeError: arguments out of range or of a wrong type, named.
    Source: Douc, Cappe and Moulines 2005 (arXiv cs/0507025); Liu and Chen 1998 for the residual form.
    """
    _weights(log_weights)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    *lead, n = log_weights.shape
    groups = math.prod(lead)
    many = n if count is None else _integer(count, "count")
    if many < 0:
        raise ValueError(f"count must not be negative, got {many}")
    if threshold is not None:
        if not isinstance(threshold, numbers.Real):
            raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], a share of the particles, got {threshold}")
        if many != n:
            raise ValueError(f"with a threshold count must be the number of particles {n}, got {many}")
        threshold = float(threshold)
    home = log_weights.device
    if isinstance(sample_ids, Tensor):
        sample_ids = sample_ids.reshape(-1)
    places = _place(home, seed, step, sample_ids, groups)
    stream = _within(stream, "stream", 256, "256")
    seed_tensor, step_tensor, ids, seed_value, step_value, first = places
    found = op(
        log_weights.reshape(groups, n), seed_tensor, step_tensor, ids, METHODS.index(method), many, threshold,
        seed_value, step_value, stream, first,
    )  # fmt: skip
    if check and bool(found[2].isnan().any()):
        bad = int(found[2].isnan().nonzero()[0])
        raise ValueError(f"log_weights of group {bad} have no positive weight, or nan or +inf among them")
    return Resampled(found[0].reshape(*lead, many), found[1].reshape(*lead, many), found[2].reshape(lead))


def gather(x: Tensor, ancestors: Tensor) -> Tensor:
    """Particles by their ancestors: entry i of a group is particle ``ancestors[..., i]`` of that group.

    x (..., N, *shape) of any dtype, ancestors int64 (..., M) as `resample` gives them -> (..., M, *shape): one read and
    one write. Differentiable in x. ValueError where the leading shapes differ.
    """
    if not isinstance(x, Tensor) or not isinstance(ancestors, Tensor):
        raise TypeError(f"x and ancestors must be tensors, got {type(x).__name__} and {type(ancestors).__name__}")
    if ancestors.dtype is not torch.int64:
        raise TypeError(f"ancestors must have dtype int64, got {ancestors.dtype}")
    lead = ancestors.dim() - 1
    if lead < 0 or x.dim() <= lead or x.shape[:lead] != ancestors.shape[:lead]:
        raise ValueError(
            f"x {tuple(x.shape)} must be (..., particles, *shape) with the leading shape of ancestors "
            f"{tuple(ancestors.shape)}"
        )
    if x.device != ancestors.device:
        raise TypeError(f"ancestors is on {ancestors.device}, x on {x.device}: one device expected")
    return reference.gather(x, ancestors)
