"""The arguments of density sums: checked, promoted and brought into the three-dimensional form of the ops."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import vmf
from ._elementwise import check_dense
from ._kde_ops import NOTHING, sums
from ._op import _functorch_level, _is_compiling
from .reference.kde import KERNELS as OP_KERNELS
from .reference.kde import log_normalizer

PRECISIONS = ("highest", "high", "fast")
_LARGE = 1e15  # numbers whose squares, and those of what is as small, float32 can hold
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Call:
    """Queries (B, N, d), data (B, M, d), bandwidth (B, 1, 1), (B, N, 1) or (B, 1, M), bias (B, M); their first form."""

    function: str
    x: Tensor
    y: Tensor
    bandwidth: Tensor
    bias: Tensor | None
    #: log of the weight that a row is divided by: (B, 1) or (B, N), or None
    log_total: Tensor | float | None
    kernel: str
    nu: float
    exclude: int
    highest: bool
    batch: torch.Size
    dtype: torch.dtype
    numpy: bool
    #: a positive number, not a tensor that may hold NaN
    known_bandwidth: bool
    #: (B, 1, d) float64, what was subtracted from queries and data
    centre: Tensor | None = None

    @property
    def vmf(self) -> bool:
        """Whether this is the kernel of inner products on the sphere."""
        return self.kernel == "vmf"

    def sums(self, outputs: int, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The op on these arguments."""
        bias = self.bias
        if self.vmf:  # exp(x.y / h^2) is a gaussian with weights exp(|y|^2 / 2h^2) and a factor exp(|x|^2 / 2h^2)
            if self.bandwidth.shape[1] != 1:
                raise ValueError(f"{self.function}: kernel='vmf' needs one bandwidth, got one a query")
            extra = (self.y.double() / self.bandwidth).square().sum(-1) * 0.5
            bias = extra if bias is None else bias + extra
        index = OP_KERNELS.index(_named(self.kernel))
        found = sums(self.x, self.y, self.bandwidth, bias, values, index, self.nu, self.exclude, outputs, self.highest)
        return found if self.known_bandwidth else self._doubted(*found)

    def _doubted(self, log_sum: Tensor, mean: Tensor, square: Tensor, spread: Tensor) -> tuple[Tensor, ...]:
        # A bandwidth that is NaN leaves a row without weights: to the kernels that is one outside every support.
        bad = (0.0 * self.bandwidth.detach()).sum(2)
        rows = (t + bad if t.shape[1] else t for t in (square, spread))
        return log_sum + bad, mean + bad[..., None].to(mean.dtype), *rows

    def vmf_row(self) -> Tensor:
        """The row factor of the vmf kernel K = exp((x.y - 1) / h^2), as a logarithm."""
        inverse = self.bandwidth[..., 0].square().reciprocal()
        return (0.5 * self.x.double().square().sum(-1) - 1.0) * inverse

    def normalised(self, log_sum: Tensor) -> Tensor:
        """The log density of a log-sum; bandwidths by datum are in the bias already."""
        d = self.x.shape[-1]
        if self.vmf:
            k = self.bandwidth[..., 0].square().reciprocal()
            return log_sum + (0.5 * self.x.double().square().sum(-1)) * k + vmf.log_normalizer(d, k) - self._total()
        found = log_sum - self._total() - log_normalizer(_named(self.kernel), d, self.nu)
        found = found if self.bandwidth.shape[2] != 1 else found - d * torch.log(self.bandwidth[..., 0])
        if not found.requires_grad:
            return found
        return torch.where(log_sum == -torch.inf, log_sum, found)  # outside of every support, where nothing changes

    def _total(self) -> Tensor | float:
        return 0.0 if self.log_total is None else self.log_total

    def times_exp(self, value: Tensor, log_sum: Tensor) -> Tensor:
        """value * exp(log_sum), with the row factor of the vmf kernel."""
        if self.vmf:
            row = self.vmf_row()
            log_sum = log_sum + (row if log_sum.dim() == 2 else row[..., None])
        return (value.double() * torch.exp(log_sum)).to(value.dtype)

    def widened(self) -> Call:
        """The same in float64."""
        return replace(self, x=self.x.double(), y=self.y.double())

    def narrowed(self) -> Call:
        """The same in float32 about the data's mean (not vmf's), or as it is where numbers are seen to be too large."""
        x, y = self.x, self.y
        centre = None
        if not self.vmf and y.shape[1]:
            centre = y.detach().mean(1, keepdim=True)
            x, y = x - centre, y - centre
        if host_may_look(x, y, self.bandwidth):
            usual = (x.detach().abs() < _LARGE).all() & (y.detach().abs() < _LARGE).all()
            h = self.bandwidth.detach()
            if not bool(usual & ((h > 1 / _LARGE) & (h < _LARGE)).all()):
                return self
        return replace(self, x=x.float(), y=y.float(), centre=centre)

    def placed(self, positions: Tensor) -> Tensor:
        """Positions in the frame of the caller."""
        return positions if self.centre is None else positions.double() + self.centre

    def with_bias(self, bias: Tensor) -> Call:
        """The same with one more bias on the data."""
        return replace(self, bias=bias.double() if self.bias is None else self.bias + bias.double())

    def like_data(self, value: Any, name: str, features: int) -> Tensor:
        """``value`` (..., M) or (..., M, dv) in the form (B, M) or (B, M, dv), in the compute dtype."""
        return self._aligned(value, name, features, self.y.shape[1], "M", self.x.dtype if features else torch.float64)

    def like_queries(self, value: Any, name: str) -> Tensor:
        """``value`` (..., N) in the form (B, N), float64."""
        return self._aligned(value, name, 0, self.x.shape[1], "N", torch.float64)

    def _aligned(self, value: Any, name: str, features: int, rows: int, letter: str, dtype: torch.dtype) -> Tensor:
        t = _tensor(self.function, name, value, self.x.device).to(dtype)
        if t.dim() < 1 + features or t.shape[t.dim() - 1 - features] != rows:
            want = f"(..., {letter}={rows}{', dv' if features else ''})"
            raise ValueError(f"{self.function}: {name} must have shape {want}, got {tuple(t.shape)}")
        tail = t.shape[t.dim() - 1 - features :]
        try:
            return t.expand(*self.batch, *tail).reshape(math.prod(self.batch), *tail)
        except RuntimeError:
            raise ValueError(
                f"{self.function}: {name} {tuple(t.shape)} does not broadcast to the batch {tuple(self.batch)}"
            ) from None


def _named(kernel: str) -> str:
    # the op's kernel that a public one is a case of
    return {"vmf": "gaussian", "cauchy": "student_t"}.get(kernel, kernel)


def _tensor(function: str, name: str, value: Any, device: torch.device | None = None) -> Tensor:
    t = value if isinstance(value, Tensor) else _from_array(function, name, value, device or "cpu")
    check_dense(function, name, t)
    if t.is_complex():
        raise TypeError(f"{function}: {name} must be real, got dtype {t.dtype}")
    if device is not None and t.device != device and t.dim():
        raise TypeError(f"{function}: {name} must be on {device} as x is, got {t.device}")
    if not t.is_floating_point():
        t = t.to(torch.get_default_dtype())
    return t if device is None else t.to(device)


def _from_array(function: str, name: str, value: Any, device: Any) -> Tensor:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{function}: {name} must be an array, got rows of several lengths ({error})") from None
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(s < 0 for s in array.strides):
        array = array.copy()  # torch knows no such arrays
    try:
        return torch.as_tensor(array, device=device)
    except TypeError:
        raise TypeError(f"{function}: {name} must hold numbers torch has, got dtype {array.dtype}") from None


def is_number(value: Any) -> bool:
    """Whether this is a plain number, Python's or NumPy's."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _bandwidth(function: str, value: Any, shape: torch.Size, device: torch.device) -> Tensor:
    if is_number(value):
        if not 0 < value < math.inf:
            raise ValueError(f"{function}: bandwidth must be a positive number, got {value}")
        return torch.full((math.prod(shape[:-2]), 1, 1), float(value), dtype=torch.float64, device=device)
    h = _tensor(function, "bandwidth", value, device).double()
    h = torch.where((h > 0) & (h < torch.inf), h, torch.nan)
    padded = h.reshape(*(1,) * (2 - h.dim()), *h.shape) if h.dim() < 2 else h
    try:
        torch.broadcast_shapes(padded.shape, shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: bandwidth {tuple(h.shape)} does not broadcast to the pairs {tuple(shape)}"
        ) from None
    if padded.dim() > len(shape):
        raise ValueError(f"{function}: bandwidth {tuple(h.shape)} has more dimensions than the pairs {tuple(shape)}")
    tail = padded.shape[-2:]
    if tail[0] != 1 and tail[1] != 1:
        raise ValueError(
            f"{function}: bandwidth must vary along the queries (N, 1) or along the data (M,), not along both; "
            f"got {tuple(h.shape)}"
        )
    return padded.expand(*shape[:-2], *tail).reshape(math.prod(shape[:-2]), *tail)


def others(w: Tensor) -> Tensor:
    """For each of the weights the sum of the others along the last dimension."""
    if not w.shape[-1]:
        return w
    # For the heaviest a sum without it: subtracted from the whole it may leave nothing of the others.
    top = w.argmax(-1, keepdim=True)
    rest = w.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return (w.sum(-1, keepdim=True) - w).scatter(-1, top, rest)


def host_may_look(*tensors: Tensor) -> bool:
    """Whether numbers can be read at once: no device to wait for, nothing traced."""
    return not _is_compiling() and not _functorch_level() and all(t.is_cpu and type(t) is Tensor for t in tensors)


def _weights(function: str, value: Any, c: Call, exclude_self: bool) -> tuple[Tensor, Tensor]:
    # log weights, and the logarithm of what a row is divided by
    w = c.like_data(value, "weights", 0)
    if host_may_look(w):  # elsewhere negative weights and sums of zero give NaN
        if bool((w < 0).any()):
            raise ValueError(f"{function}: weights must not be negative, got {float(w.min())}")
        if w.shape[1] and bool((w.sum(1) == 0).any()):
            raise ValueError(f"{function}: weights must not all be zero")
    logs = torch.where(w == 0, -torch.inf, torch.log(torch.where(w == 0, 1.0, w)))
    total = w.sum(1, keepdim=True)
    if exclude_self:
        total = others(w)
    return logs, torch.where(total == 0, 0.0, torch.log(torch.where(total == 0, 1.0, total)))


def arrange(
    function: str,
    x: Any,
    data: Any,
    bandwidth: Any,
    weights: Any,
    kernel: str,
    nu: float,
    exclude_self: bool,
    precision: str,
    kernels: tuple[str, ...],
    density: bool = True,
) -> Call:
    """Check and promote the arguments of a density sum; with ``density`` a bandwidth by datum weighs it by h^-d."""
    if kernel not in kernels:
        raise ValueError(f"{function}: kernel must be one of {', '.join(kernels)}, got {kernel!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"{function}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if isinstance(nu, str) or not 0 < nu < math.inf:
        raise ValueError(f"{function}: nu must be a positive number, got {nu!r}")
    numpy = not isinstance(x, Tensor) and not isinstance(data, Tensor)
    x = _tensor(function, "x", x)
    y = _tensor(function, "data", data, x.device)
    for name, t, shape in (("x", x, "(..., N, d)"), ("data", y, "(..., M, d)")):
        if t.dim() < 2 or t.shape[-1] < 1:
            raise ValueError(f"{function}: {name} must have shape {shape} with d >= 1, got {tuple(t.shape)}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"{function}: x {tuple(x.shape)} and data {tuple(y.shape)} must agree in their last dimension")
    n, m, d = x.shape[-2], y.shape[-2], x.shape[-1]
    if exclude_self and n != m:
        raise ValueError(f"{function}: exclude_self needs as many queries as data, got {n} and {m}")
    try:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{function}: the batches of x {tuple(x.shape)} and data {tuple(y.shape)} do not broadcast together"
        ) from None
    dtype = torch.promote_types(x.dtype, y.dtype)
    compute = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    if is_number(bandwidth) and not 1 / _LARGE < bandwidth < _LARGE:
        compute = torch.float64  # 1 / h^2 and (x / h)^2 leave float32's range
    count = math.prod(batch)
    h = _bandwidth(function, bandwidth, torch.Size((*batch, n, m)), x.device)
    c = Call(
        function,
        x.to(compute).expand(*batch, n, d).reshape(count, n, d),
        y.to(compute).expand(*batch, m, d).reshape(count, m, d),
        h,
        None,
        None,
        kernel,
        1.0 if kernel == "cauchy" else float(nu),
        0 if exclude_self else NOTHING,
        precision == "highest",
        batch,
        dtype,
        numpy,
        is_number(bandwidth),
    )
    if weights is not None:
        bias, total = _weights(function, weights, c, exclude_self)
        c = replace(c, bias=bias, log_total=total)
    elif m:
        c = replace(c, log_total=math.log(max(1, m - 1 if exclude_self else m)))
    if h.shape[2] != 1 and kernel != "vmf":
        per_datum = -d * torch.log(h[:, 0])
        if density:
            c = replace(c, bias=per_datum if c.bias is None else c.bias + per_datum)
    elif h.shape[2] != 1:
        raise ValueError(f"{function}: kernel='vmf' needs one bandwidth, got one a datum")
    return c.narrowed() if precision == "fast" and dtype is torch.float64 else c


def restore(c: Call, value: Tensor) -> Any:
    """A result in the batch shape and dtype (indices: as they are), as NumPy where the call came as NumPy."""
    value = (value.to(c.dtype) if value.is_floating_point() else value).reshape(*c.batch, *value.shape[1:])
    return value.detach().numpy() if c.numpy else value
