"""Compiles the C++ test programs with the system compiler, once per set of flags and session."""

import functools
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
COMMON = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", f"-I{ROOT / 'csrc'}")
FLAGS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"),
}
_building = threading.Lock()
_folder = tempfile.TemporaryDirectory(prefix="fokker-cpp-")


def program(name: str, isa: str = "baseline", contract: str = "off") -> str:
    """Path of tests/cpp/<name>.cpp compiled for one instruction set; a compiler error raises with its message."""
    with _building:  # two threads must not build, and run, one file
        return _built(name, isa, contract)


@functools.cache
def _built(name: str, isa: str, contract: str) -> str:
    out = Path(_folder.name) / f"{name}-{isa}-{contract}"
    _compile(name, isa, contract, "-o", str(out))
    return str(out)


def assembly(name: str, isa: str) -> str:
    """The assembly text of tests/cpp/<name>.cpp for one instruction set."""
    return _compile(name, isa, "off", "-S", "-o", "-")


def _compile(name: str, isa: str, contract: str, *output: str) -> str:
    command = [
        COMPILER,
        *COMMON,
        "-Wall",
        "-Wextra",
        *FLAGS[isa],
        f"-ffp-contract={contract}",
        str(HERE / f"{name}.cpp"),
    ]
    done = subprocess.run([*command, *output], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def run_bytes(name: str, *arguments: str, isa: str = "baseline", contract: str = "off") -> bytes:
    """Standard output of a test program."""
    done = subprocess.run([program(name, isa, contract), *arguments], capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name} {arguments} [{isa}]: exit {done.returncode}\n{done.stderr.decode()}")
    return done.stdout


def run(name: str, *arguments: str, isa: str = "baseline", contract: str = "off") -> str:
    """Standard output of a test program as text."""
    return run_bytes(name, *arguments, isa=isa, contract=contract).decode()


@functools.cache
def why_not(isa: str) -> str | None:
    """Why programs of this instruction set cannot run here, or None."""
    if COMPILER is None:
        return "no C++ compiler (c++, g++, clang++) on PATH"
    if isa == "baseline":
        return None
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"{isa} is an x86-64 instruction set, this is {platform.machine()}"
    return None if isa in run("probe").split() else f"this CPU has no {isa}"
