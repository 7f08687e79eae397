"""Every op of the table on a GPU as programs use one: captured in a graph, on a side stream, on another device.

Needs a CUDA device; what an op computes is tests/test_ops.py's business, there and here against the same calls.
"""

import contextlib
import itertools

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker._cli.check import _to
from fokker.cases import CASES

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
CHECKED = {"vmf_fit"}  # looks at its input (validate=False does not)
EVERY = [
    pytest.param(c, b, id=f"{c.name}-{b}")
    for c, b in itertools.product(CASES.values(), ("cuda", "triton"))
    if b in BACKENDS and b in c.backends
]


def generator():
    return torch.Generator().manual_seed(11)


def inputs(case, device="cuda"):
    return _to(case.make(300, torch.float32, generator()), device)


def tensors(args):
    return [a for a in args if isinstance(a, torch.Tensor)]


def copied(args):
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in args]


def step(case, args):
    """The results, and where the op has one the gradient; of copies, since some ops write to an argument."""
    out = [case.call(*copied(args))]
    if case.gradients:
        leaves = [a.detach().requires_grad_() if i in case.gradients else a for i, a in enumerate(copied(args))]
        wanted = [leaves[i] for i in case.gradients]
        with contextlib.suppress(fokker.BackendError):  # no gradient on this backend
            grads = torch.autograd.grad(case.call(*leaves).sum(), wanted, allow_unused=True)
            out += [g for g in grads if g is not None]
    return out


def spoil(args):
    """Make numbers that no result may have been made of."""
    for t in tensors(args):
        if t.is_floating_point():
            t.fill_(torch.nan)


@pytest.mark.parametrize(("case", "backend"), [p for p in EVERY if p.values[0].name not in CHECKED])
def test_in_a_graph(case, backend):
    """Captured after one call, replayed on numbers that were not there at the capture."""
    args = inputs(case)
    with fokker.use_backend(backend):
        with torch.cuda.stream(torch.cuda.Stream()):
            want = step(case, args)
        torch.cuda.synchronize()
        kept = [t.clone() for t in tensors(args)]
        spoil(args)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = step(case, args)
        for t, old in zip(tensors(args), kept, strict=True):
            t.copy_(old)
        for g in got:
            g.fill_(-7)
        graph.replay()
        torch.cuda.synchronize()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, equal_nan=True)  # torch's products may take another algorithm


@pytest.mark.parametrize(("case", "backend"), [p for p in EVERY if p.values[0].name not in CHECKED])
def test_on_a_side_stream(case, backend):
    """Inputs that a busy stream writes late: a kernel on any other stream would read what was there before."""
    args = inputs(case)
    with fokker.use_backend(backend):
        want = step(case, args)
        late = copied(args)
        spoil(late)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # about 10 ms
            for t, a in zip(tensors(late), tensors(args), strict=True):
                t.copy_(a)
            got = step(case, late)
        stream.synchronize()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, equal_nan=True)  # torch's products may take another algorithm


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("case", "backend"), EVERY)
def test_on_another_device(case, backend):
    """Tensors of a device that is not the current one."""
    with fokker.use_backend(backend):
        want = step(case, inputs(case, "cuda:0"))
        got = step(case, inputs(case, "cuda:1"))
    assert torch.cuda.current_device() == 0
    for g, w in zip(got, want, strict=True):
        assert g.device == torch.device("cuda", 1)
        torch.testing.assert_close(g.cpu(), w.cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("case", "backend"), EVERY)
def test_the_same_bits_every_time(case, backend):
    """No sum depends on which block came first."""
    args = _to(case.make(20000, torch.float32, generator()), "cuda")
    with fokker.use_backend(backend):
        first = step(case, args)
        for _ in range(3):
            for g, w in zip(step(case, args), first, strict=True):
                torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)
