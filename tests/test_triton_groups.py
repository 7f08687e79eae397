"""Group norms in Triton, interpreted or on a GPU: both layouts, forward and backward, against the float64 reference.

As tests/test_triton.py: without TRITON_INTERPRET=1 and without a GPU, one test runs this file in its own process.
"""

import pytest
import torch
from interpreting import DEVICE, IN_A_PROCESS, RUNS, run_in_a_process

import fokker
from fokker.denoiser import bias_free_norm, group_norm_silu

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SHAPES = [((3, 12), 3), ((1, 40, 5, 7), 8), ((1, 4, 33, 35), 2), ((2, 6, 3, 2, 5), 6)]


@pytest.mark.slow
@IN_A_PROCESS
def test_interpreted_in_a_process():
    run_in_a_process(__file__)


def both(call, tensors, grads):
    """Results and gradients of a call by Triton in float32 and by the reference in float64."""
    found = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [t.to(DEVICE).to(dtype).detach().requires_grad_() for t in tensors]
        with fokker.use_backend(backend):
            results = call(*leaves)
            results = results if isinstance(results, tuple) else (results,)
            total = sum((y * g.to(y)).sum() for y, g in zip(results, grads, strict=True))
            found.append((results, torch.autograd.grad(total, leaves)))
    return found


def check(found, grads=2e-6):
    (got, got_grads), (want, want_grads) = found
    for results, bound in (((got, want), 1e-6), ((got_grads, want_grads), grads)):
        for a, b in zip(*results, strict=True):
            a, b = a.detach().cpu().double(), b.detach().cpu()
            assert float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


@RUNS
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_norm_and_gradients(shape, groups, last):
    batch, channels = shape[:2]
    x = torch.randn(shape) + 50
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    film = 0.3 * torch.randn(batch, 2 * channels)
    tensors = (x, 1 + 0.3 * torch.randn(channels), torch.randn(channels), *film.chunk(2, 1))
    found = both(lambda x, *rest: group_norm_silu(x, groups, *rest, eps=1e-2), tensors, (torch.randn(shape),))
    assert found[0][0][0].stride() == found[0][1][0].stride() == x.stride()
    check(found)


@RUNS
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_residual_and_its_gradients(last):
    x, residual = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    if last:
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    grads = (torch.randn(x.shape), torch.randn(x.shape))
    check(both(lambda x, r: group_norm_silu(x, 3, residual=r, activation="relu"), (x, residual), grads))


@RUNS
def test_bias_free_and_other_strides():
    x, w = torch.randn(2, 6, 5, 7), torch.randn(6)
    grad = (torch.randn(x.shape),)
    std = torch.tensor([0.5, 1.0, 2.0], device=DEVICE)
    check(both(lambda x, w: bias_free_norm(x, 3, w), (x, w), grad))
    check(both(lambda x, w: bias_free_norm(x, 3, w, std=std.to(x.dtype), activation="relu"), (x, w), grad))
    for view in (x.mT.contiguous().mT, torch.randn(4, 9, 8, 7)[::2, 2:8, 1:6], x[:, :, :1, :1].expand(2, 6, 5, 7)):
        check(both(lambda x, w: group_norm_silu(x, 3, w), (view, w), grad))


@RUNS
def test_empty_and_nan():
    with fokker.use_backend("triton"):
        assert group_norm_silu(torch.zeros(0, 6, 4, device=DEVICE), 3).shape == (0, 6, 4)
        x = torch.randn(2, 6, 4, device=DEVICE)
        x[1, 3, 2] = float("nan")
        y = group_norm_silu(x, 3)
        assert bool(y[1, 2:4].isnan().all())
        assert int(y.isnan().sum()) == 8
        y = group_norm_silu(x[:1], 3, torch.full((6,), 1e38, device=DEVICE))  # silu(-1e38) is 0
        assert bool((y.isfinite() & (y >= 0)).all())
