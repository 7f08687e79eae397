"""A GPU without numbers, for the host's side of what runs on one.

Under `FakeGpu` tensors on the CPU are real and those on "cuda" have a shape, dtype and device only. An operation on
tensors of both devices raises; a number that the host reads of one (``item``, ``if``), for which a GPU would have to be
waited for, is counted and made up: what checks find on good data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class FakeGpu(FakeTensorMode):
    """See the module; ``waits`` is how often the host has read a number."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = tree_leaves((args, kwargs))
        if not any(isinstance(a, FakeTensor) or (isinstance(a, torch.device) and a.type == "cuda") for a in given):
            return func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waits += 1
            if args[0].dtype is torch.bool:
                return not getattr(args[0], "of_any", False)
            return 1.0 if args[0].is_floating_point() else 0
        if func.overloadpacket not in COPIES:
            for a in given:  # as in torch, a 0-dimensional CPU tensor goes anywhere
                if isinstance(a, Tensor) and not isinstance(a, FakeTensor) and a.dim():
                    raise RuntimeError(f"{func}: a CPU tensor {tuple(a.shape)} among CUDA ones")
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if func.overloadpacket is torch.ops.aten.any:
            found.of_any = True
        return found
