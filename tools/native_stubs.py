"""Writes the type stubs of the native modules, python/fokker/_cpu.pyi and _cuda.pyi, from their docstrings.

Run after a binding has changed, with the package built (FOKKER_EMU=ON, or with CUDA): python tools/native_stubs.py.
tests/test_stubs.py holds the written stubs against the modules.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "fokker"
ONLY_EMULATED = ("set_order",)


def functions(module: ModuleType) -> dict[str, str]:
    """Name -> signature of each function, as pybind11 writes it in the docstring."""
    out = {}
    for name, value in sorted(vars(module).items()):
        if not name.startswith("__") and callable(value):
            signature = (value.__doc__ or "").splitlines()[0].removeprefix(name)
            signature = re.sub(r"typing\.SupportsInt \| typing\.SupportsIndex", "int", signature)
            out[name] = re.sub(r"typing\.SupportsFloat \| typing\.SupportsIndex", "float", signature)
    return out


def stub(doc: str, signatures: dict[str, str]) -> str:
    """The text of a stub."""
    body = [f"def {name}{signature}: ..." for name, signature in signatures.items()]
    text = "\n".join(body)
    abstract = "import collections.abc\n\n" if "collections.abc." in text else ""
    return f'"""{doc}"""\n\n{abstract}import torch\n\n{text}\n'


def stubs() -> dict[str, str]:
    """File name -> text, of the modules that are built; `_cuda` is `_emu` without what only the emulator has."""
    out = {}
    for file, candidates in (("_cpu.pyi", ("_cpu",)), ("_cuda.pyi", ("_cuda", "_emu"))):
        for name in candidates:
            try:
                module = importlib.import_module(f"fokker.{name}")
            except ImportError:
                continue
            kept = {n: s for n, s in functions(module).items() if n not in ONLY_EMULATED}
            where = "CPU" if file == "_cpu.pyi" else "CUDA"
            doc = f"fokker's {where} kernels, which write into the tensors they are given; by tools/native_stubs.py."
            out[file] = stub(doc, kept)
            break
    return out


if __name__ == "__main__":
    for file, text in stubs().items():
        (PACKAGE / file).write_text(text)
        print(PACKAGE / file)
