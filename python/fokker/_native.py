"""Loads the compiled modules, hands them torch's tensor types and thread pool, and says why one is absent."""

from __future__ import annotations

import ctypes
import importlib
import os
from types import ModuleType

import torch

_unavailable: dict[str, str] = {}


class CudaError(RuntimeError):
    """A CUDA launch failed; the message names the op and carries CUDA's own text."""


def _load(name: str) -> ModuleType | None:
    try:
        module = importlib.import_module(f"fokker.{name}")
    except ValueError as error:  # an impossible FOKKER_CPU_ISA
        raise RuntimeError(str(error)) from None
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == f"fokker.{name}"
        _unavailable[name] = "not built" if missing else f"built, but does not load ({error})"
        return None
    module.init(torch.Tensor, torch.nn.Parameter, CudaError)
    return module


def _share_thread_pool(module: ModuleType) -> bool:
    # torch.set_num_threads then governs these kernels too, and no second OpenMP enters the process.
    folder = os.path.join(os.path.dirname(torch.__file__), "lib")
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            address = ctypes.cast(ctypes.CDLL(path).torch_parallel_for, ctypes.c_void_p).value
            module.set_parallel_for(address)
            return True
    return False


def _driver_version() -> int:
    """The driver's CUDA version as 1000 major + 10 minor, 0 where NVML does not say."""
    try:
        nvml, version = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_int(0)
        if nvml.nvmlInit_v2() == 0:
            nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version))
            nvml.nvmlShutdown()
        return version.value
    except (OSError, AttributeError):
        return 0


def _why_no_gpu(module: ModuleType) -> str | None:
    # By NVML alone (as torch counts devices): the CUDA runtime, once started, would not work in a forked child.
    if not torch.cuda.device_count():
        return "built, but there is no usable CUDA device or driver"
    driver, built = _driver_version(), module.cuda_version
    if driver and driver // 1000 < built // 1000:
        return f"built with CUDA {built // 1000}, but the driver ends at CUDA {driver // 1000}.{driver % 1000 // 10}"
    return None


cpu = _load("_cpu")
emu = _load("_emu")
cuda = _load("_cuda")
if cpu is not None:
    _share_thread_pool(cpu)
if cuda is not None and (reason := _why_no_gpu(cuda)) is not None:
    _unavailable["_cuda"], cuda = reason, None


def why_unavailable(backend: str) -> str:
    """Why ``backend`` ('cpu', 'cuda' or 'emu') cannot run, or 'ok'."""
    return "ok" if globals()[backend] is not None else _unavailable[f"_{backend}"]
