r"""PALM: classes as mixtures of von Mises-Fisher prototypes, for embeddings that tell what lies outside the classes.

H. Lu, D. Gong, S. Wang, J. Xue, L. Yao, K. Moore, "Learning with Mixture of Prototypes for Out-of-Distribution
Detection", ICLR 2024 (arXiv 2402.02653). Class c is a mixture of K vMF distributions with mean directions p_ck, the
prototypes, and concentration kappa = 1 / temperature. A training step assigns each embedding softly to the prototypes
of its class (`assign`), moves them there (`move`) and adds two losses (`mle_loss`, `contrastive_loss`); `step` is the
four in order. Afterwards `score` ranks points by how likely they are to be from any class.

Shapes: embeddings z (N, d) and prototypes (C, K, d) are unit vectors, labels (N,) int64 in [0, C), assignments (N, K)
over the prototypes of a row's own class. Everything is plain differentiable PyTorch but `assign`, which is a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import vmf

__all__ = ["assign", "concentrations", "contrastive_loss", "mle_loss", "move", "prune", "score", "sinkhorn", "step"]

TITLE = "mixtures of prototypes on the sphere a class, for embeddings that tell what lies outside the classes"
PAPER = "Lu et al., ICLR 2024, arXiv 2402.02653"
EXAMPLE = "loss, prototypes = palm.step(z, prototypes, labels)"


def _check(z: Tensor, prototypes: Tensor, labels: Tensor | None = None, assignment: Tensor | None = None) -> None:
    if prototypes.dim() != 3 or z.dim() != 2 or z.shape[1] != prototypes.shape[2]:
        raise ValueError(f"z {tuple(z.shape)} and prototypes {tuple(prototypes.shape)} must be (N, d) and (C, K, d)")
    if labels is not None and (labels.shape != z.shape[:1] or labels.dtype != torch.int64):
        raise ValueError(f"labels must be int64 of shape {(len(z),)}, got {labels.dtype} {tuple(labels.shape)}")
    if assignment is not None and assignment.shape != (len(z), prototypes.shape[1]):
        raise ValueError(f"assignment must be {(len(z), prototypes.shape[1])}, got {tuple(assignment.shape)}")


def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    labels: Tensor | None = None,
    *,
    groups: int | None = None,
) -> Tensor:
    r"""Balanced soft assignment ``diag(u) exp(scores / epsilon) diag(v)`` (Sinkhorn and Knopp 1967; Cuturi 2013).

    Each iteration scales columns to equal sums, then rows to sum one: rows sum to one whatever ``iterations``, columns
    tend to N / K. It runs on logarithms, so no ``epsilon`` overflows.

    Args:
        scores: ``(N, K)``. labels: ``(N,)`` groups, each balanced by itself (columns tend to N_c / K); one without.
        groups: how many there are; None: the largest label and one, for which a GPU is waited for.

    Returns:
        ``(N, K)``, rows on the simplex. Differentiable.
    """
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"epsilon > 0 and iterations >= 1 expected, got {epsilon} and {iterations}")
    if scores.dim() != 2:
        raise ValueError(f"scores must be (N, K), got {tuple(scores.shape)}")
    if not len(scores):
        return scores.clone()
    if labels is None:
        labels, groups = torch.zeros(len(scores), dtype=torch.int64, device=scores.device), 1
    count = int(labels.max()) + 1 if groups is None else groups
    at, shape = labels[:, None].expand_as(scores), (count, scores.shape[1])
    logs = scores / epsilon
    for _ in range(iterations):
        top = logs.detach().new_full(shape, -math.inf).scatter_reduce(0, at, logs.detach(), "amax")
        sums = logs.new_zeros(shape).scatter_add(0, at, (logs - top[labels]).exp())
        logs = (logs - top[labels] - sums[labels].log()).log_softmax(1)
    return logs.exp()


def prune(assignment: Tensor, keep: int) -> Tensor:
    """The ``keep`` largest entries of each row, scaled to sum to one; the others zero."""
    if not 1 <= keep <= assignment.shape[1]:
        raise ValueError(f"keep must be in [1, {assignment.shape[1]}], got {keep}")
    values, at = assignment.topk(keep, dim=1)
    return torch.zeros_like(assignment).scatter(1, at, values / values.sum(1, keepdim=True))


def assign(
    z: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    keep: int | None = None,
) -> Tensor:
    """Assignment weights (N, K) of rows to the prototypes of their class: Sinkhorn within each class, then `prune`."""
    _check(z, prototypes, labels)
    with torch.no_grad():
        cosines = (z @ prototypes.flatten(0, 1).t()).view(len(z), *prototypes.shape[:2])
        own = cosines[torch.arange(len(z), device=z.device), labels]
        out = sinkhorn(own, epsilon, iterations, labels, groups=len(prototypes))
        return out if keep is None else prune(out, min(keep, out.shape[1]))


def _class_sums(z: Tensor, labels: Tensor, assignment: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """sum_i w_ik z_i over the rows of each class, (C, K, d), and the masses sum_i w_ik, (C, K)."""
    own = torch.nn.functional.one_hot(labels, classes).to(z.dtype)
    weights = (own[:, :, None] * assignment[:, None]).flatten(1)  # (N, C K)
    sums = (weights.t() @ z).view(classes, assignment.shape[1], z.shape[1])
    return sums, weights.sum(0).view(classes, assignment.shape[1])


def move(prototypes: Tensor, z: Tensor, labels: Tensor, assignment: Tensor, momentum: float = 0.99) -> Tensor:
    r"""Prototypes after an exponential moving average, ``p_ck <- normalize(m p_ck + (1 - m) mean_w z)``.

    The mean is over the rows of class c with weights w_ik, so a step does not grow with the batch; a prototype that no
    row was assigned to stays. Differentiable (the contrastive loss reaches the embeddings through it).
    """
    _check(z, prototypes, labels, assignment)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    sums, mass = _class_sums(z, labels, assignment, len(prototypes))
    there = (mass > 0)[..., None]
    mean = sums / torch.where(there, mass[..., None], 1.0)
    moved = torch.nn.functional.normalize(momentum * prototypes + (1 - momentum) * mean, dim=-1)
    return torch.where(there, moved, prototypes)


def _log_densities(z: Tensor, prototypes: Tensor, concentration: Tensor | float) -> Tensor:
    """log vMF(z_i; p_ck, kappa_ck), (N, C, K)."""
    k = torch.as_tensor(concentration, dtype=z.dtype, device=z.device).expand(prototypes.shape[:2])
    weighted = (k[..., None] * prototypes).flatten(0, 1)
    return (z @ weighted.t()).view(len(z), *k.shape) + vmf.log_normalizer(z.shape[1], k.contiguous())


def mle_loss(
    z: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    assignment: Tensor,
    concentration: Tensor | float = 10.0,
) -> Tensor:
    r"""Mean of ``-log p(y_i | z_i)``, the posterior of a row's own class among the classes' prototype mixtures.

    ``p(y | z) = sum_k w_yk vMF(z; p_yk) / sum_c sum_k w_ck vMF(z; p_ck)``: the row's own class with its assignment
    weights (also in the denominator, so that the loss is never negative), the others with equal weights 1 / K.
    Normalising factors cancel where all concentrations are equal, as in the paper; kappa (C, K) may also differ or be
    learned. Differentiable in ``z``, ``prototypes``, ``assignment`` and ``concentration``.
    """
    _check(z, prototypes, labels, assignment)
    logits = _log_densities(z, prototypes, concentration)
    count = prototypes.shape[1]
    own = torch.nn.functional.one_hot(labels, len(prototypes)).bool()[:, :, None]
    kept = own & (assignment > 0)[:, None]  # log 0 without its NaN gradient
    log_weights = torch.where(kept, assignment[:, None], 1.0).log()
    weighted = torch.where(own, torch.where(kept, logits + log_weights, -math.inf), logits - math.log(count))
    mine = torch.logsumexp(weighted[torch.arange(len(z), device=z.device), labels], 1)
    return (torch.logsumexp(weighted.flatten(1), 1) - mine).mean()


def contrastive_loss(prototypes: Tensor, temperature: float = 0.5) -> Tensor:
    r"""Pulls prototypes of a class together and classes apart: a contrastive loss with every prototype as the anchor.

    Mean over (c, k) of ``-log [sum_{k' != k} exp(p_ck.p_ck' / t) / sum_{(c', k') != (c, k)} exp(p_ck.p_c'k' / t)]``.
    Needs K >= 2. Differentiable.
    """
    if prototypes.dim() != 3 or prototypes.shape[1] < 2:
        raise ValueError(f"prototypes must be (C, K, d) with K >= 2, got {tuple(prototypes.shape)}")
    classes, count, _ = prototypes.shape
    flat = prototypes.flatten(0, 1)
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    logits = (flat @ flat.t() / temperature).masked_fill(itself, -math.inf)
    group = torch.arange(classes, device=flat.device).repeat_interleave(count)
    other = group[:, None] != group
    return (torch.logsumexp(logits, 1) - torch.logsumexp(logits.masked_fill(other, -math.inf), 1)).mean()


def step(
    z: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    concentration: Tensor | float = 10.0,
    contrast_weight: float = 1.0,
    contrast_temperature: float = 0.5,
    momentum: float = 0.99,
    epsilon: float = 0.05,
    iterations: int = 3,
    keep: int | None = 5,
) -> tuple[Tensor, Tensor]:
    """One PALM training step: the loss ``mle_loss + contrast_weight * contrastive_loss`` and the moved prototypes.

    ``mle_loss`` sees the moved prototypes as constants, the contrastive loss reaches ``z`` through them. Back-propagate
    the loss into the encoder and keep the prototypes (returned detached) for the next batch.
    """
    options = {"epsilon": epsilon, "iterations": iterations, "keep": keep}
    moved = move(prototypes.detach(), z, labels, assign(z, prototypes, labels, **options), momentum)
    fixed = moved.detach()
    loss = mle_loss(z, fixed, labels, assign(z, fixed, labels, **options), concentration)
    if contrast_weight:
        loss = loss + contrast_weight * contrastive_loss(moved, contrast_temperature)
    return loss, fixed


def concentrations(z: Tensor, prototypes: Tensor, labels: Tensor, assignment: Tensor, most: float = 1e6) -> Tensor:
    r"""The kappa (C, K) of largest likelihood for given prototypes: A_d(kappa) = p.mean_w z, at most ``most``.

    A prototype that leads away from its points, or has none, gets 0.
    """
    _check(z, prototypes, labels, assignment)
    with torch.no_grad():
        sums, mass = _class_sums(z.double(), labels, assignment.double(), len(prototypes))
        along = (sums * prototypes.double()).sum(-1)
        r = torch.where(mass > 0, along / mass, 0.0).clamp(0.0, 1.0)
        k = vmf.concentration_from_resultant(z.shape[1], r).clamp(max=most)
    return k.to(z.dtype)


def score(z: Tensor, prototypes: Tensor, concentration: Tensor | float = 10.0, *, mixture: bool = False) -> Tensor:
    r"""How likely a point is to belong to any class, (N,); low means out of distribution.

    The largest log density among the prototypes, or with ``mixture`` the log density of all of them with equal weights
    (`fokker.vmf.mixture_log_prob`, fused). With one concentration the first ranks as the largest cosine does.
    (The paper ranks by the Mahalanobis distance of features; these scores need no covariance.) Differentiable.
    """
    _check(z, prototypes)
    if not mixture:
        return _log_densities(z, prototypes, concentration).flatten(1).amax(1)
    flat = prototypes.flatten(0, 1)
    k = torch.as_tensor(concentration, dtype=z.dtype, device=z.device).expand(prototypes.shape[:2]).flatten()
    return vmf.mixture_log_prob(z, flat, k.contiguous(), k.new_full((len(flat),), -math.log(len(flat))))
