"""The ops of Gaussian mixtures: log densities of components, weighted sums over components and over points.

With delta_ki = x_i - m_k: joint_ki = b_k - |A_k delta_ki|^2 / 2 and its log-sum-exp over k; the pull sum_k w_ki (B_k
delta_ki + o_k); the moments sum_i w_ki (1, delta_ki, delta_ki delta_ki^T). Matrices are (K, d), diagonal, or (K, rows,
d), or one for all components. The gradients of each are sums of the same kinds, so every order takes the kernels;
only the gradient in weights is torch's own, in tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._op import Kernel, Op, TritonModule, native_kernels
from .reference import mixture as reference

_TRITON = TritonModule("gaussian", adjacent_queries=True, gaussian_rows=1)
_JOINT = 1 << 19  # joint densities a tile on the CPU: they stay in a cache
_ELEMENTS = 1 << 17  # of a tile's components x points x d array


def row_tiles(n: Any, k: int, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Ranges of points whose joint densities fit a tile; one range where n is symbolic."""
    rows = max(64, (_JOINT if device.type == "cpu" else 1 << 24) // max(k, 1)) if isinstance(n, int) else n
    for begin in range(0, n, rows) if isinstance(n, int) and n > rows else (0,):
        yield begin, min(n, begin + rows) if isinstance(n, int) else n


# ---- kernels --------------------------------------------------------------------------------------------------------
def _points(module: Any, x: Tensor) -> Tensor:
    return (x.t() if module.adjacent_queries else x).contiguous()


def _matrix(module: Any, a: Tensor, triangular: bool = False) -> Tensor:
    """A matrix as the kernels take it: diagonal as it is, others in panels of some rows, column by column."""
    if a.dim() == 2:
        return a.contiguous()
    a = a.tril() if triangular else a
    k, rows, d = a.shape
    size = module.gaussian_rows
    panels = -(-rows // size)
    whole = a if panels * size == rows else torch.nn.functional.pad(a, (0, 0, 0, panels * size - rows))
    return whole.reshape(k, panels, size, d).transpose(2, 3).contiguous()


def _joint_kernel(module: Any) -> Kernel:
    def run(
        x: Tensor, mean: Tensor, root: Tensor, bias: Tensor, triangular: bool, shares: bool
    ) -> tuple[Tensor, Tensor]:
        n = x.shape[0]
        log_sum, joint = x.new_empty(n), x.new_empty(mean.shape[0], n)
        fixed = (mean.contiguous(), _matrix(module, root, triangular), bias.contiguous(), triangular)
        module.gaussian_joint(_points(module, x), *fixed, joint, log_sum, shares)
        return log_sum, joint

    return run


def _log_sum_kernel(module: Any) -> Kernel:
    def run(x: Tensor, mean: Tensor, root: Tensor, bias: Tensor, triangular: bool) -> Tensor:
        n, k = x.shape[0], mean.shape[0]
        log_sum = x.new_empty(n)
        fixed = (mean.contiguous(), _matrix(module, root, triangular), bias.contiguous(), triangular)
        if not module.adjacent_queries:
            module.gaussian_joint(_points(module, x), *fixed, None, log_sum, False)
            return log_sum
        for begin, end in row_tiles(n, k, x.device):
            joint = x.new_empty(k, end - begin)
            module.gaussian_joint(_points(module, x[begin:end]), *fixed, joint, log_sum[begin:end], False)
        return log_sum

    return run


def _pull_kernel(module: Any) -> Kernel:
    def run(weight: Tensor, x: Tensor, mean: Tensor, pull: Tensor, offset: Tensor | None) -> Tensor:
        rows = pull.shape[1]
        out = x.new_empty((rows, x.shape[0]) if module.adjacent_queries else (x.shape[0], rows))
        offset = None if offset is None else offset.contiguous()
        points, matrix = _points(module, x), _matrix(module, pull)
        module.gaussian_pull(weight.contiguous(), points, mean.contiguous(), matrix, offset, out)
        return out.t().contiguous() if module.adjacent_queries else out

    return run


def _moments_kernel(module: Any) -> Kernel:
    def run(weight: Tensor, x: Tensor, mean: Tensor, full: bool) -> tuple[Tensor, Tensor, Tensor]:
        if full:
            return _outer_moments(weight, x, mean)
        mass, first, second = x.new_empty(mean.shape[0]), torch.empty_like(mean), torch.empty_like(mean)
        module.gaussian_moments(weight.contiguous(), _points(module, x), mean.contiguous(), mass, first, second)
        return mass, first, second

    return run


def _component_tiles(k: int, n: Any, d: int) -> Iterator[tuple[int, int]]:
    step = max(1, _ELEMENTS // max(1, n * d)) if isinstance(n, int) else k
    for begin in range(0, k, step):
        yield begin, min(k, begin + step)


def _outer_moments(weight: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    k, d = mean.shape
    first, second = torch.zeros_like(mean), x.new_zeros(k, d, d)
    for rows in range(0, x.shape[0], 8192):
        points, w = x[rows : rows + 8192], weight[:, rows : rows + 8192]
        for i, j in _component_tiles(k, len(points), d):
            delta = points - mean[i:j, None, :]
            scaled = w[i:j, :, None] * delta
            first[i:j] += scaled.sum(1)
            second[i:j].baddbmm_(scaled.mT, delta)
    return weight.sum(1), first, second


# ---- gradients ------------------------------------------------------------------------------------------------------
def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """B_k v_k for vectors (K, d)."""
    return matrix * vectors if matrix.dim() == 2 else (matrix @ vectors[..., None])[..., 0]


def _shared(grad: Tensor, like: Tensor) -> Tensor:
    return grad.sum(0, keepdim=True) if like.shape[0] == 1 and grad.shape[0] != 1 else grad


def _to_parameters(
    needs: Any, weight: Tensor, x: Tensor, mean: Tensor, root: Tensor, triangular: bool
) -> list[Tensor | None]:
    """Gradients of sum_ki w_ki joint_ki in x, mean, root and bias."""
    root = root.tril() if triangular and root.dim() == 3 else root
    square = -(root.square() if root.dim() == 2 else root.mT @ root)
    found: list[Tensor | None] = [None] * 4
    if needs[0]:
        found[0] = gaussian_pull(weight, x, mean, square, None)
    if any(needs[1:]):
        mass, first, second = gaussian_moments(weight, x, mean, root.dim() == 3)
        to_root = -root * second if root.dim() == 2 else -(root @ second)
        to_root = _shared(to_root, root)
        found[1:] = -_times(square, first), to_root.tril() if triangular and root.dim() == 3 else to_root, mass
    return found


def _joint_backward(needs: Any, saved: Any, extra: Any, to_sum: Tensor, to_joint: Tensor) -> list[Tensor | None]:
    x, mean, root, _, log_sum, joint = saved
    triangular, shares = extra
    if shares:
        weight = joint * (to_joint - (joint * to_joint).sum(0) + to_sum)
    else:
        weight = to_joint + _exp_less(joint, log_sum) * to_sum
    return _to_parameters(needs, weight, x, mean, root, triangular)


def _exp_less(joint: Tensor, log_sum: Tensor) -> Tensor:
    return torch.exp(joint - torch.where(log_sum == -torch.inf, 0.0, log_sum))


def _log_sum_backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> list[Tensor | None]:
    x, mean, root, bias = saved
    parts = []
    for begin, end in row_tiles(x.shape[0], mean.shape[0], x.device):
        rows = x[begin:end]
        weight = gaussian_joint(rows, mean, root, bias, *extra, True)[1] * grad[begin:end]
        parts.append(_to_parameters(needs, weight, rows, mean, root, *extra))
    if len(parts) == 1:
        return parts[0]
    found: list[Any] = [torch.cat([p[0] for p in parts]) if needs[0] else None]
    return found + [None if t[0] is None else torch.stack(t).sum(0) for t in list(zip(*parts, strict=True))[1:]]


def _to_weights(x: Tensor, mean: Tensor, left: Callable[[slice, Tensor], Tensor], constant: Tensor, k: int) -> Tensor:
    """left_ki . delta_ki + constant_ki (K, N), with left (k, n, d) of a tile of components at its delta."""

    def tile(at: slice, x: Tensor, mean: Tensor) -> Tensor:
        delta = x - mean[at, None, :]
        return (left(at, delta) * delta).sum(-1)

    found = []
    for i, j in _component_tiles(k, x.shape[0], x.shape[1]):
        at = slice(i, j)
        if torch.is_grad_enabled():
            found.append(checkpoint(tile, at, x, mean, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(tile(at, x, mean))
    return torch.cat(found) + constant


def _cut(matrix: Tensor, at: slice) -> Tensor:
    return matrix if matrix.shape[0] == 1 else matrix[at]


def _pull_backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> list[Tensor | None]:
    weight, x, mean, pull, offset = saved
    k, diagonal = mean.shape[0], pull.dim() == 2
    found: list[Tensor | None] = [None] * 5
    if needs[0]:
        constant = (grad @ offset.t()).t() if offset is not None else grad.new_zeros(())

        def left(at: slice, delta: Tensor) -> Tensor:
            here = _cut(pull, at)
            return grad * here[:, None, :] if diagonal else grad @ here

        found[0] = _to_weights(x, mean, left, constant, k)
    turned = pull if diagonal else pull.mT
    if needs[1]:
        found[1] = gaussian_pull(weight, grad, grad.new_zeros(k, grad.shape[1]), turned, None)
    summed = weight @ grad
    if needs[2]:
        found[2] = -_times(turned, summed)
    if needs[3]:
        centre = mean.detach().mean(0)  # of the differences alone: less is lost where the data lie far from 0
        points, means = x - centre, mean - centre
        if diagonal:
            to_pull = weight @ (grad * points) - means * summed
        else:
            to_pull = _cross(weight, grad, points) - summed[:, :, None] * means[:, None, :]
        found[3] = _shared(to_pull, pull)
    if needs[4]:
        found[4] = summed
    return found


def _cross(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_i w_ki left_i right_i^T, (K, rows, d)."""
    n, rows = left.shape
    tiles = _component_tiles(weight.shape[0], n, rows)
    return torch.cat([(weight[i:j, :, None] * left).mT @ right for i, j in tiles])


def _moments_backward(
    needs: Any, saved: Any, extra: Any, to_mass: Tensor, to_first: Tensor, to_second: Tensor
) -> list[Tensor | None]:
    weight, x, mean, mass, first, _ = saved
    diagonal = to_second.dim() == 2
    found: list[Tensor | None] = [None] * 3
    if needs[0]:

        def left(at: slice, delta: Tensor) -> Tensor:
            here = to_second[at]
            return (delta * here[:, None, :] if diagonal else delta @ here.mT) + to_first[at, None, :]

        found[0] = _to_weights(x, mean, left, to_mass[:, None], mean.shape[0])
    slope = 2 * to_second if diagonal else to_second + to_second.mT
    if needs[1]:
        found[1] = gaussian_pull(weight, x, mean, slope, to_first)
    if needs[2]:
        found[2] = -(mass[:, None] * to_first + _times(slope, first))
    return found


# ---- ops ------------------------------------------------------------------------------------------------------------
#: log sum_k exp(b_k - |A_k (x_i - m_k)|^2 / 2), (N,)
gaussian_log_sum = Op(
    "gaussian_log_sum(Tensor x, Tensor mean, Tensor root, Tensor bias, bool triangular) -> Tensor",
    tensors=4,
    reference=reference.log_sum,
    fake=lambda x, mean, root, bias, triangular: x.new_empty(x.shape[0]),
    kernels=native_kernels(_log_sum_kernel, _TRITON),
    backward=_log_sum_backward,
)
#: the same (N,), and b_k - |A_k (x_i - m_k)|^2 / 2, or with ``shares`` its softmax over k, (K, N)
gaussian_joint = Op(
    "gaussian_joint(Tensor x, Tensor mean, Tensor root, Tensor bias, bool triangular, bool shares) -> (Tensor, Tensor)",
    tensors=4,
    reference=reference.joint,
    fake=lambda x, mean, root, bias, triangular, shares: (
        x.new_empty(x.shape[0]),
        x.new_empty(mean.shape[0], x.shape[0]),
    ),
    kernels=native_kernels(_joint_kernel, _TRITON),
    backward=_joint_backward,
    saves_results=True,
)
#: sum_k w_ki (B_k (x_i - m_k) + o_k), (N, rows)
gaussian_pull = Op(
    "gaussian_pull(Tensor weight, Tensor x, Tensor mean, Tensor pull, Tensor? offset) -> Tensor",
    tensors=5,
    reference=reference.pull,
    fake=lambda weight, x, mean, pull, offset: x.new_empty(x.shape[0], pull.shape[1]),
    kernels=native_kernels(_pull_kernel, _TRITON),
    backward=_pull_backward,
)
#: sum_i w_ki (K,), sum_i w_ki (x_i - m_k) (K, d), and their second moments (K, d), ``full`` (K, d, d)
gaussian_moments = Op(
    "gaussian_moments(Tensor weight, Tensor x, Tensor mean, bool full) -> (Tensor, Tensor, Tensor)",
    tensors=3,
    reference=reference.moments,
    fake=lambda weight, x, mean, full: (
        x.new_empty(mean.shape[0]),
        torch.empty_like(mean),
        x.new_empty(*mean.shape, mean.shape[1]) if full else torch.empty_like(mean),
    ),
    kernels=native_kernels(_moments_kernel, _TRITON),
    backward=_moments_backward,
    saves_results=True,
)
