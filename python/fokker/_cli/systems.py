"""``python -m fokker systems``: the published methods with paper and a line of code; NAME runs an example."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from .. import systems
from .demo import require


class Entry(NamedTuple):
    """A module of `fokker.systems`, by what it says of itself."""

    name: str
    title: str
    paper: str
    example: str


def registry() -> list[Entry]:
    """Every system, from the constants TITLE, PAPER and EXAMPLE of its module."""
    found = []
    for info in sorted(pkgutil.iter_modules(systems.__path__), key=lambda i: i.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{systems.__name__}.{info.name}")
        constants = [getattr(module, c, None) for c in ("TITLE", "PAPER", "EXAMPLE")]
        if not all(isinstance(c, str) and c and "\n" not in c for c in constants):
            raise AttributeError(f"fokker.systems.{info.name} must say TITLE, PAPER and EXAMPLE, a line each")
        found.append(Entry(info.name, *constants))
    return found


def markdown() -> str:
    """README's table."""
    lines = ["| system | what | paper |", "|---|---|---|"]
    lines += [f"| `{e.name}` | {e.title} | {e.paper} |" for e in registry()]
    return "\n".join(lines)


def example(name: str) -> ModuleType | None:
    """The module `_cli.system_NAME`, whose ``example(out, seed)`` runs a system on real data; None: it has none."""
    full = f"{__package__}.system_{name}"
    return importlib.import_module(full) if importlib.util.find_spec(full) else None


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.markdown:
        print(markdown())
        return 0
    entries = registry()
    if args.name is None:
        for e in entries:
            runs = f"    python -m fokker systems {e.name}\n" if example(e.name) else ""
            print(f"{e.name}: {e.title}\n    {e.paper}\n    {e.example}\n{runs}")
        return 0
    names = [e.name for e in entries]
    if args.name not in names:
        raise SystemExit(f"no system {args.name!r}; there are {', '.join(names)}")
    module = example(args.name)
    if module is None:
        raise SystemExit(
            f"{args.name} has no example to run here; a line of code: {entries[names.index(args.name)].example}"
        )
    require("the example", {"sklearn": "scikit-learn", "matplotlib": "matplotlib"})
    start = time.perf_counter()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found = module.example(out, args.seed)
    pictures = f"Pictures: {', '.join(map(str, found['pictures']))}  " if found.get("pictures") else ""
    print(f"\n{pictures}({time.perf_counter() - start:.0f} s in all)")
    return 0
