"""Which implementation runs: 'auto', 'reference', 'cpu', 'cuda', 'triton', and 'emu' in test builds."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator

import torch

from . import _native

NAMES = ("auto", "reference", "cpu", "cuda", "triton", "emu")


class BackendError(RuntimeError):
    """The selected backend cannot run here, or has no kernel for the op."""


def _parse(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


current: str = _parse(os.environ.get("FOKKER_BACKEND") or "auto", "FOKKER_BACKEND")
_listeners: list[Callable[[], None]] = []


def on_change(listener: Callable[[], None]) -> None:
    """Call ``listener`` after every change of the selected backend."""
    _listeners.append(listener)


def set_backend(name: str) -> None:
    """Select the backend of every op from here on, in all threads.

    ``'auto'`` takes, by the device of the tensors, the native kernel if the op has one, else Triton on CUDA, else the
    reference. Any other name is forced: an op that the backend lacks raises `BackendError`, it never falls back.
    The environment variable ``FOKKER_BACKEND`` sets the first value.
    """
    global current
    current = _parse(name, "backend")
    for listener in _listeners:
        listener()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Select a backend for the length of a ``with`` block (for the whole process, as `set_backend`)."""
    before = current
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


@functools.cache
def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install fokker[triton])"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.device_count():  # is_available() starts CUDA
        return "ok"
    return "no CUDA device (set TRITON_INTERPRET=1 before Python starts to interpret on the CPU)"


def available_backends() -> dict[str, str]:
    """Backend name -> ``'ok'``, or the reason it cannot run here."""
    native = {name: _native.why_unavailable(name) for name in ("cpu", "cuda", "emu")}
    return {"reference": "ok", "cpu": native["cpu"], "cuda": native["cuda"], "triton": _triton(), "emu": native["emu"]}
