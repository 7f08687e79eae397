"""``python -m fokker info``: what this installation is, and what can run here."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _native, available_backends
from .._backend import current


def cpu_name() -> str:
    """The CPU's name as the operating system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What a measurement has to be read with: versions, CPU, instruction set, threads, GPU."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    gpu = None
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        gpu = {"name": p.name, "capability": f"{p.major}.{p.minor}", "memory_gib": round(p.total_memory / 2**30, 1)}
    return {
        "fokker": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_isa": _native.cpu.isa() if _native.cpu is not None else None,
        "gpu": gpu,
    }


def run(args: argparse.Namespace) -> int:
    """Print the machine and the backends."""
    facts = machine()
    backends = available_backends()
    if args.json:
        print(json.dumps({**facts, "backend": current, "backends": backends}, indent=1))
        return 0
    for key, value in facts.items():
        print(f"{key:10s} {value if value is not None else 'none'}")
    print(f"{'backend':10s} {current} (FOKKER_BACKEND, fokker.set_backend)")
    for name, state in backends.items():
        print(f"  {name:10s} {state}")
    return 0
