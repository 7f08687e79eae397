"""Registers, stack, shared and local memory of every kernel in the built CUDA module, against the committed budget.

    python tools/kernel_resources.py [MODULE.so] [--update] [--json]

Reads the machine code with ``cuobjdump`` (on PATH, in CUDA_HOME, or the copy the triton wheel ships), no GPU needed.
Without --update it lists what exceeds ``tests/resources.json`` and exits with 1 if anything does; --update rewrites
that file. The budget is per architecture: an architecture of the module that the budget does not know is only listed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BUDGET = Path(__file__).resolve().parent.parent / "tests" / "resources.json"
FIELDS = ("registers", "stack", "shared", "local")
Usage = dict[str, dict[str, dict[str, int]]]  # architecture -> kernel -> field -> amount


def find_tool(name: str) -> str | None:
    """Path of one of the CUDA binary utilities, or None."""
    places = [shutil.which(name)]
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            places.append(str(Path(home) / "bin" / name))
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin:
        places.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name))
    return next((p for p in places if p and os.access(p, os.X_OK)), None)


def find_module() -> str | None:
    """Path of the installed fokker._cuda, or None."""
    try:
        spec = importlib.util.find_spec("fokker._cuda")
    except ImportError:
        return None
    return spec.origin if spec else None


def _run(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def demangle(names: list[str]) -> dict[str, str]:
    """Mangled name -> readable name without namespaces and parameters."""
    tool = shutil.which("c++filt") or find_tool("cu++filt")
    if tool is None:
        raise RuntimeError("c++filt is needed to read kernel names (package binutils)")
    full = _run(tool, text="\n".join(names)).splitlines()
    return {mangled: short_name(text) for mangled, text in zip(names, full, strict=True)}


def short_name(text: str) -> str:
    """``void fokker::cuda::(anonymous namespace)::f<float, (int)4>(float*)`` -> ``f<float, 4>``."""
    text = text.replace("(anonymous namespace)::", "").replace("fokker::", "")
    text = re.sub(r"\((?:bool|int|unsigned int|[\w:]+)\)(-?\d+)", r"\1", text)
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            text = text[:at]
            break
    return re.sub(r"^void ", "", re.sub(r"\b(?:cuda|math|bessel_detail)::", "", text))


#: the file in a mangled name, which tells copies of a header's kernel apart
_FILE = re.compile(r"\d+_GLOBAL__N__[0-9a-f]+_\d+_\w+_cu_[0-9a-f]{8}")


def usage(module: str) -> Usage:
    """What each kernel of each architecture in the module takes."""
    tool = find_tool("cuobjdump")
    if tool is None:
        raise RuntimeError("cuobjdump not found (install the CUDA toolkit or the triton wheel)")
    text = _run(tool, "-res-usage", module)
    found: Usage = {}
    arch = name = ""
    for line in text.splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (.+):$", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            row = dict(zip(FIELDS, map(int, match.groups()), strict=True))
            if name in found.setdefault(arch, {}):
                raise RuntimeError(f"{name} appears twice for {arch}")
            found[arch][name] = row
    names = sorted({n for kernels in found.values() for n in kernels})
    short = demangle(names)
    if len(set(short.values())) != len({_FILE.sub("", n) for n in names}):
        raise RuntimeError("two kernels share one short name")
    read: Usage = {a: {} for a in found}
    for a, kernels in found.items():
        for n, row in sorted(kernels.items(), key=lambda i: short[i[0]]):
            # a header's kernel is in every file that launches it: the most that a copy takes
            seen = read[a].get(short[n], row)
            read[a][short[n]] = {field: max(row[field], seen[field]) for field in FIELDS}
    return read


def compare(seen: Usage, budget: Usage) -> list[str]:
    """What is above the budget, missing from the module, or missing from the budget."""
    problems = []
    for arch in sorted(set(seen) & set(budget)):
        for name, row in seen[arch].items():
            allowed = budget[arch].get(name)
            if allowed is None:
                problems.append(f"{arch} {name}: not in the budget ({row})")
                continue
            for field in FIELDS:
                if row[field] > allowed[field]:
                    problems.append(f"{arch} {name}: {row[field]} {field}, budget {allowed[field]}")
        problems += [
            f"{arch} {name}: in the budget, not in the module" for name in budget[arch] if name not in seen[arch]
        ]
    if not set(seen) & set(budget):
        problems.append(f"no architecture in common: module {sorted(seen)}, budget {sorted(budget)}")
    return problems


def instructions(module: str) -> Iterator[tuple[str, str]]:
    """(mangled kernel, opcode with its modifiers) for each instruction of the machine code."""
    tool = find_tool("cuobjdump")
    if tool is None:
        raise RuntimeError("cuobjdump not found (install the CUDA toolkit or the triton wheel)")
    name = ""
    for line in _run(tool, "-sass", module).splitlines():
        if match := re.search(r"Function : (\S+)", line):
            name = match[1]
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", line):
            yield name, match[1]


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("module", nargs="?", help="path of the built module (default: fokker's)")
    parser.add_argument("--update", action="store_true", help="write the budget from the module")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    options = parser.parse_args(arguments)
    module = options.module or find_module()
    if module is None:
        print("fokker._cuda is not built here; give the module's path", file=sys.stderr)
        return 2
    seen = usage(module)
    if options.json:
        print(json.dumps(seen, indent=1))
    if options.update:
        rows = {a: {n: [row[f] for f in FIELDS] for n, row in kernels.items()} for a, kernels in sorted(seen.items())}
        body = ",\n".join(
            f' "{a}": {{\n' + ",\n".join(f"  {json.dumps(n)}: {json.dumps(r)}" for n, r in kernels.items()) + "\n }"
            for a, kernels in rows.items()
        )
        BUDGET.write_text("{\n" + f' "fields": {json.dumps(FIELDS)},\n' + body + "\n}\n")
    problems = compare(seen, read_budget())
    if not options.json:
        for arch, kernels in sorted(seen.items()):
            most = max(kernels.items(), key=lambda item: item[1]["registers"])
            stack = [n for n, row in kernels.items() if row["stack"] or row["local"]]
            registers = f"at most {most[1]['registers']} registers ({most[0]})"
            print(f"{arch}: {len(kernels)} kernels, {registers}, stack in {stack or 'none'}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def read_budget() -> Usage:
    """The committed budget."""
    if not BUDGET.exists():
        return {}
    content = json.loads(BUDGET.read_text())
    fields = content.pop("fields")
    return {a: {n: dict(zip(fields, row, strict=True)) for n, row in kernels.items()} for a, kernels in content.items()}


if __name__ == "__main__":
    sys.exit(main())
