"""One registration per op: schema, reference, kernels, gradient; and the eager fast path around it.

An `Op` is called with positional arguments as its schema says, tensors first. It takes, in this order:

- under ``torch.compile``, ``export``, ``make_fx``, fake tensors or any tensor subclass: the registered
  ``torch.ops.fokker`` op, whose fake kernel and gradient torch knows;
- under ``torch.func`` transforms or forward-mode AD: the reference, which is composed of torch ops
  (a registered op's jvp would be zero without a word);
- in plain eager mode: the kernel chosen for the backend, through one table look-up.

Autocast changes nothing: an op computes in the dtype of its arguments.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _backend, _native

NAMESPACE = "fokker"
Kernel = Callable[..., Any]

REGISTRY: dict[str, Op] = {}

_library = torch.library.Library(NAMESPACE, "DEF")
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_is_compiling = torch.compiler.is_dynamo_compiling  # other tracers show in the dispatch stack
_grad_enabled = torch.is_grad_enabled
_dispatch_depth = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.maybe_current_level
_forward_ad = torch.autograd.forward_ad


def _raiser(error: Exception) -> Kernel:
    def fail(*args: Any) -> Any:
        raise error

    return fail


class TritonModule:
    """A module of Triton kernels in the place of a compiled one, imported at its first use; constants are given."""

    def __init__(self, name: str, **constants: Any) -> None:
        self._name = name
        self.__dict__.update(constants)

    def __getattr__(self, function: str) -> Kernel:
        return getattr(importlib.import_module(f".triton_kernels.{self._name}", __package__), function)


def native_kernels(make: Callable[[Any], Kernel], triton: TritonModule | None = None) -> dict[str, Kernel]:
    """The kernel of each native backend, made from its compiled module (None where that is not there)."""
    modules = {"cpu": _native.cpu, "cuda": _native.cuda, "emu": _native.emu}
    if triton is not None:
        modules["triton"] = triton
    return {name: make(module) for name, module in modules.items()}


def triton_kernel(make: Callable[[Any], Kernel], name: str, writes_out: bool = False) -> Kernel:
    """The kernel made from a Triton module that has the functions of a native one; imported at the first call."""

    @functools.cache
    def kernel() -> Kernel:
        return make(importlib.import_module(f".triton_kernels.{name}", __package__))

    def run(*args: Any, **options: Any) -> Any:
        return kernel()(*args, **options)

    run.writes_out = writes_out  # type: ignore[attr-defined]
    return run


class Op:
    """A differentiable op with several backends.

    Args:
        schema: a torch.library schema, tensors first (``Tensor`` or ``Tensor?``), one or more tensor results.
        tensors: how many leading arguments are tensors.
        reference: the definition, composed of torch ops; every other backend must equal it.
        fake: shapes and dtypes of the results, for tracing.
        kernels: backend name -> the same signature, without autograd.
        backward: ``(needs, saved, extra, *grads) -> gradients of the leading tensors``, where ``needs`` says which
            are wanted, ``saved`` are the leading tensors (with ``saves_results`` then the results), ``extra`` the other
            arguments.
            It must be made of ops that are differentiable themselves, where a second derivative exists.
            Without one, a wanted gradient is torch's own through the reference under 'auto' and 'reference', and a
            `BackendError` under a forced backend, which never falls back.
        elementwise: the tensors broadcast; ``vmap`` then reaches the kernels as one more dimension.
        partial_grads: ``grads`` are None for results that nobody used, instead of zeros.
        drops: the entries of ``saved`` that ``backward`` does without; they are None there, and not kept alive.
    """

    def __init__(
        self,
        schema: str,
        *,
        tensors: int,
        reference: Kernel,
        fake: Kernel,
        kernels: dict[str, Kernel],
        backward: Callable[..., Sequence[Tensor | None]] | None = None,
        elementwise: bool = False,
        saves_results: bool = False,
        partial_grads: bool = False,
        drops: Sequence[int] = (),
    ) -> None:
        self.name = schema.split("(", 1)[0]
        self.reference = reference
        self.kernels = {"reference": reference, **kernels}
        self.tensors = tensors
        self.backward = backward
        self.elementwise = elementwise
        self.saves_results = saves_results
        self.partial_grads = partial_grads
        self.drops = frozenset(drops)
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(self.name, self._run, "CPU")
        _library.impl(self.name, self._run, "CUDA")
        qualified = f"{NAMESPACE}::{self.name}"
        torch.library.register_fake(qualified, fake, lib=_library)
        torch.library.register_vmap(qualified, self._vmap, lib=_library)
        if backward is not None or "!" not in schema:  # torch takes none for an op that writes to its arguments
            torch.library.register_autograd(qualified, self._torch_backward, setup_context=self._setup, lib=_library)
        self.torch_op = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        self._by_device: dict[bool, Kernel] = {}
        self.function = self._make_function() if backward is not None else None
        self._refresh()
        _backend.on_change(self._refresh)
        REGISTRY[self.name] = self

    # -- choosing a kernel ----------------------------------------------------------------------------------------
    def _refresh(self) -> None:
        # Where a gradient is wanted: the reference has torch's own.
        self.prefers_reference = _backend.current == "reference" or (
            self.backward is None and _backend.current == "auto"
        )
        for is_cuda, device in ((False, "cpu"), (True, "cuda")):
            try:
                self._by_device[is_cuda] = self._pick(device)
            except _backend.BackendError as error:
                self._by_device[is_cuda] = _raiser(error)

    def _pick(self, device: str) -> Kernel:
        want = _backend.current
        if want == "auto":
            if device in self.kernels and getattr(_native, device) is not None:
                return self.kernels[device]
            if device == "cuda" and "triton" in self.kernels and _backend.available_backends()["triton"] == "ok":
                return self.kernels["triton"]
            return self.reference
        if want not in self.kernels:
            raise _backend.BackendError(f"{self.name} has no {want!r} kernel (it has: {', '.join(self.kernels)})")
        if (reason := _backend.available_backends()[want]) != "ok":
            raise _backend.BackendError(f"backend {want!r} cannot run here: {reason}")
        if (want, device) in {("cpu", "cuda"), ("emu", "cuda"), ("cuda", "cpu")}:
            return _raiser(TypeError(f"{self.name}: backend {want!r} is selected, but the tensors are on the {device}"))
        return self.kernels[want]

    def _run(self, *args: Any) -> Any:
        first = args[0]
        return self._by_device[first.is_cuda](*args)

    def _vmap(self, info: Any, in_dims: Any, *args: Any) -> Any:
        if self.elementwise:
            batched = list(args)
            ranks = [a.dim() - (d is not None) for a, d in zip(args, in_dims, strict=True) if isinstance(a, Tensor)]
            for i, (a, d) in enumerate(zip(args, in_dims, strict=True)):
                if d is not None:  # the batch dimension in front, then ones up to the rank of the broadcast
                    a = a.movedim(d, 0)
                    batched[i] = a.reshape(a.shape[0], *(1,) * (max(ranks) - a.dim() + 1), *a.shape[1:])
            out = self.torch_op(*batched)
        else:
            out = torch.vmap(self.reference, in_dims=tuple(in_dims), randomness=info.randomness)(*args)
        return out, (0,) * len(out) if isinstance(out, tuple) else 0

    def _no_gradient(self) -> _backend.BackendError:
        return _backend.BackendError(
            f"{self.name} has no gradient on backend {_backend.current!r}: detach its arguments, or take the gradient "
            "of the reference with fokker.use_backend('reference')"
        )

    # -- autograd -------------------------------------------------------------------------------------------------
    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results: tuple[Tensor, ...] = ()
        if self.saves_results:
            results = output if isinstance(output, tuple) else (output,)
        saved = (*inputs[: self.tensors], *results)
        if self.drops:
            saved = tuple(None if i in self.drops else t for i, t in enumerate(saved))
        ctx.save_for_backward(*saved)
        ctx.extra = inputs[self.tensors :]
        if self.partial_grads:
            ctx.set_materialize_grads(False)

    def _torch_backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if self.backward is None:
            raise self._no_gradient()
        needs = ctx.needs_input_grad[: self.tensors]
        return (*self.backward(needs, ctx.saved_tensors, ctx.extra, *grads), *(None for _ in ctx.extra))

    def _make_function(op) -> type[torch.autograd.Function]:
        by_device, tensors = op._by_device, op.tensors

        class Function(torch.autograd.Function):
            # The ctx-first form: setup_context would cost an inspect.signature a call, and functorch never comes here.
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                out = by_device[args[0].is_cuda](*args)
                if len(args) == tensors and not op.saves_results:
                    ctx.save_for_backward(*args)
                    ctx.extra = ()
                else:
                    op._setup(ctx, args, out)
                return out

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return op._torch_backward(ctx, *grads)

        Function.__name__ = f"{op.name}_autograd"
        return Function

    # -- the call -------------------------------------------------------------------------------------------------
    def __call__(self, *args: Any) -> Any:
        if _is_compiling():
            return self._compiled(*args)
        needs_grad = False
        for a in args[: self.tensors]:
            if a is None:
                continue
            # The kernels cannot see a lazy negation (imag of a conjugate); the dispatcher resolves it.
            if type(a) not in _PLAIN or not (a.is_cpu or a.is_cuda) or a.is_neg():
                return self.torch_op(*args)
            if a.requires_grad:
                needs_grad = True
        if _functorch_level() or _forward_ad._current_level >= 0:
            return self.reference(*args)
        if _dispatch_depth():
            return self.torch_op(*args)
        if needs_grad and _grad_enabled():
            if self.prefers_reference:
                return self.reference(*args)
            if self.function is None:
                raise self._no_gradient()
            return self.function.apply(*args)
        return self._by_device[args[0].is_cuda](*args)

    def into(self, out: Tensor, *args: Any) -> Tensor:
        """Write the result into ``out`` (right shape, dtype and device); no gradient is recorded."""
        kernel = self._by_device[out.is_cuda]
        plain = not (_is_compiling() or _dispatch_depth() or _functorch_level() or type(out) is not Tensor)
        memory = out.untyped_storage().data_ptr() if plain else 0
        shared = (
            any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() == memory for a in args) if plain else True
        )
        if shared or not out.is_contiguous() or not getattr(kernel, "writes_out", False):
            return out.copy_(self(*args))
        return kernel(*args, out=out)

    def _compiled(self, *args: Any) -> Any:
        # Dynamo traces this; a jvp through the registered op would come out as zero, so it takes the reference.
        if _forward_ad._current_level >= 0 or (self.backward is None and self.prefers_reference):
            return self.reference(*args)
        return self.torch_op(*args)
