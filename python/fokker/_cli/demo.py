"""The command ``demo``: a job a family, each in a module of its own."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path


def require(what: str, needed: Mapping[str, str]) -> None:
    """Ends the command where a module of ``needed`` (module: package) is missing."""
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"{what} needs {', '.join(missing)}: pip install fokker[demo]")


def run(args: argparse.Namespace) -> int:
    """The command: the job prints what it finds and writes its pictures into ``args.out``."""
    module = importlib.import_module(f".demo_{args.family}", __package__)
    require("the demo", module.NEEDED)
    start = time.perf_counter()
    results = module.job(Path(args.out), args.seed)
    print(f"\nPictures: {', '.join(map(str, results['pictures']))}  ({time.perf_counter() - start:.0f} s in all)")
    return 0
