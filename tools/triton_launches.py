"""Every Triton launch of the op table as the just-in-time compiler sees it, without a GPU; exit code 1 on an error.

    python tools/triton_launches.py [--op PATTERN] [--dtype float32] [--sizes 1,300] [--compile] [--arch 90]

A launch decides more than `tools/triton_aot.py` can: an integer of 1 becomes a constant, a small one has 32 bits, a
missing tensor is another's pointer, the grid has limits, and globals must be what they were. Here the driver is a
stand-in on which launches do nothing, so results mean nothing; only errors count. By default kernels go as far as
Triton's own intermediate code; ``--compile`` goes on to machine code, minutes for the whole table.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import fokker
from fokker import _backend, random, sde
from fokker._backend import BackendError
from fokker.cases import CASES

GRID = (2**31 - 1, 65535, 65535)
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


def launch(*arguments: Any) -> None:
    """A launch that checks its grid and runs nothing."""
    for name, size, most in zip("xyz", arguments, GRID, strict=False):
        if not 0 <= size <= most:
            raise ValueError(f"the grid's {name} is {size}, at most {most} is possible")


class Driver:
    """What Triton asks of a driver, for a device that is not there."""

    launcher_cls = staticmethod(lambda source, metadata: launch)
    utils = SimpleNamespace(
        load_binary=lambda *arguments: (None, None, 0, 0, 1024),
        get_device_properties=lambda device: {"max_shared_mem": 232448, "multiprocessor_count": 132},
    )

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def to_intermediate_code(
    self: JITFunction, key: Any, signature: Any, device: int, constexprs: Any, options: Any, attrs: Any, warmup: bool
) -> Any:
    """In place of a compilation: the front end alone."""
    kernels, _, target, backend, _ = self.device_caches[device]
    source = self.ASTSource(self, signature, constexprs, attrs)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    rest = backend.get_codegen_implementation(options), backend.get_module_map()
    source.make_ir(target, options, *rest, context)
    nothing = SimpleNamespace(run=launch, function=None, packed_metadata=None, launch_metadata=lambda *arguments: None)
    kernels[key] = nothing
    return nothing


def table(dtypes: list[torch.dtype], sizes: list[int]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The cases of the table and their gradients."""

    def call(case: Any, dtype: torch.dtype, size: int) -> None:
        args = case.make(size, dtype, torch.Generator().manual_seed(1))
        case.call(*args)
        if case.gradients and args[0].dtype in (torch.float32, torch.float64):
            leaves = (a.detach().requires_grad_() if i in case.gradients else a for i, a in enumerate(args))
            with contextlib.suppress(BackendError):  # no gradient in Triton
                case.call(*leaves).sum().backward()

    for case in CASES.values():
        for dtype in dtypes if "triton" in case.backends else ():
            for size in sizes if dtype in case.tolerance else ():
                yield f"{case.name} {str(dtype)[6:]} {size}", functools.partial(call, case, dtype, size)


def counters() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Seeds, steps and rows as numbers (1 too) and as tensors, and single particles."""
    one = torch.ones(1, dtype=torch.int64)
    ways = {
        "numbers": {"seed": 1, "step": 1, "sample_ids": 1},
        "tensors": {"seed": one, "step": one, "sample_ids": one},
    }
    logs, x, nothing = torch.zeros(1, 5), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    for name, way in ways.items():
        for method in ("systematic", "residual"):
            for n, count in ((1, 1), (1, 7), (5, 1)):
                draw = functools.partial(sde.resample, logs[:, :n], method, count=count, **way)
                yield f"resample {method} {n} to {count}, {name}", draw
        yield f"resample threshold, {name}", functools.partial(sde.resample, x, threshold=1.0, **way)
        yield f"absorb, {name}", functools.partial(sde.absorb_step, nothing, x[None], 1.0, mask_id=1, **way)
        for kind in ("uniform", "normal", "gumbel"):
            yield f"random {kind}, {name}", functools.partial(getattr(random, kind), 1, 1, **way)
        for row in (None, 1, one):
            steps = torch.ones(3) if row is None else torch.ones(4, 3)
            yield f"affine, row {row}, {name}", functools.partial(sde.affine_step, x, (x,), steps, row=row, **way)


def main() -> int:
    """Launch, print what fails and a closing line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", default="", help="only calls whose name this regular expression finds")
    parser.add_argument("--dtype", choices=DTYPES, help="only this dtype")
    parser.add_argument("--sizes", default="1,300", help="sizes of the cases")
    parser.add_argument("--compile", action="store_true", help="down to machine code")
    parser.add_argument("--arch", type=int, default=90, help="compute capability, e.g. 90 or 120")
    options = parser.parse_args()
    triton.runtime.driver.set_active(Driver(options.arch))
    _backend._triton = lambda: "ok"  # type: ignore[assignment]
    # What nothing writes must be something, for those who index with it.
    torch.empty, torch.Tensor.new_empty = torch.zeros, torch.Tensor.new_zeros  # type: ignore[assignment]
    count, original = 0, JITFunction._do_compile

    def counted(*arguments: Any, **options_: Any) -> Any:
        nonlocal count
        count += 1
        return (original if options.compile else to_intermediate_code)(*arguments, **options_)

    JITFunction._do_compile = counted
    dtypes = [DTYPES[options.dtype]] if options.dtype else list(DTYPES.values())
    sizes = [int(s) for s in options.sizes.split(",")]
    bad, calls, start = 0, 0, time.perf_counter()
    with fokker.use_backend("triton"):
        for way in (counters(), table(dtypes, sizes)):
            for name, call in way:
                if not re.search(options.op, name):
                    continue
                calls += 1
                try:
                    call()
                except Exception as error:  # report every launch, then fail
                    bad += 1
                    print(f"{name} FAILED: {error}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{calls} calls, {count} kernels with Triton {triton.__version__} in {seconds:.0f} s, {bad} wrong")
    return 1 if bad or not calls or not count else 0


if __name__ == "__main__":
    sys.exit(main())
