"""Compile every Triton kernel for sm_90 without a GPU and print what it takes; exit code 1 on a spill or a failure.

    python tools/triton_aot.py [--kernel SUBSTRING] [--dtype float32|float64] [--gradient-parts]

Registers, stack and local memory are cuobjdump's (the Triton wheel ships it). A float32 kernel must not contain a
float64 instruction (but for density sums, which add their tiles up in float64), and none an approximate division or
root, one that flushes subnormal numbers, or a product or sum that the assembler may fuse. Works with Triton 3.6 and
3.9. Gradients are compiled for both arguments; ``--gradient-parts`` adds the kernels of one alone, subsets of these.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton_variants import variants

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
FLOAT64_INSTRUCTION = re.compile(r"\b(?:add|sub|mul|fma|div|sqrt|rcp|setp|selp|cvt)[\w.]*\.f64\b")
APPROXIMATE = re.compile(r"\bdiv\.full|\.approx|\.ftz")
#: a product or sum without a rounding of its own, which ptxas may fuse with another
CONTRACTIBLE = re.compile(r"\b(?:mul|add|sub)\.f(?:32|64)\b")


def resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", run.stdout)}


def main() -> int:
    """Compile, print a line a kernel, and count what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument("--gradient-parts", action="store_true")
    options = parser.parse_args()
    bad, count, start = 0, 0, time.perf_counter()
    for variant in variants(options.gradient_parts):
        dtype = str(variant.dtype).removeprefix("torch.")
        if options.kernel not in variant.name or options.dtype not in (None, dtype):
            continue
        count += 1
        before = time.perf_counter()
        try:
            compiled = variant.compile()
            used = resources(compiled.asm["cubin"])
        except Exception as error:  # report every kernel, then fail
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            print(f"{variant.name:34s} {dtype:8s} FAILED: {cause}", flush=True)
            bad += 1
            continue
        ptx = compiled.asm["ptx"]
        found = {
            "SPILLS": used["STACK"] > 0 or used["LOCAL"] > 0,
            "FLOAT64": variant.dtype is torch.float32
            and not variant.table.startswith("kde")
            and {"sums", "work"}.isdisjoint(variant.kernel.arg_names)  # which are float64
            and FLOAT64_INSTRUCTION.search(ptx) is not None,
            "CONTRACTIBLE": CONTRACTIBLE.search(ptx) is not None,
            "APPROXIMATE": APPROXIMATE.search(ptx) is not None,
        }
        note = "".join(f" {name}" for name, there in found.items() if there)
        bad += bool(note)
        columns = f"registers {used['REG']:3d}  shared {compiled.metadata.shared:5d}  stack {used['STACK']:3d}"
        seconds = time.perf_counter() - before
        print(f"{variant.name:34s} {dtype:8s} {columns}  local {used['LOCAL']:3d}  {seconds:5.1f} s{note}", flush=True)
    print(f"{count} kernels with Triton {triton.__version__} in {time.perf_counter() - start:.0f} s, {bad} wrong")
    return 1 if bad or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
