"""The nearest datum of `fokker.kde.evaluate`: against pairwise distances, ties, edges, streams, derivatives."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS
from torch.autograd import gradcheck

import fokker
from fokker import kde
from fokker.cases import CASES

HERE = [b for b in BACKENDS if b in CASES["kde_log_prob_2d"].backends]
F64 = torch.float64
OUTPUTS = ("nearest", "nearest_distance")


@pytest.fixture(params=HERE)
def backend(request):
    with fokker.use_backend(request.param):
        yield request.param


def cloud(n, d, seed=0):
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def check(found, x, y, w=None, p=2, own=False):
    far = (x.double()[:, None] - y.double()).abs().pow(p).sum(-1).pow(1 / p)
    far = far if w is None else far.masked_fill(w == 0, torch.inf)
    far = far.fill_diagonal_(torch.inf) if own else far
    want, index = far.min(1)
    assert found["nearest"].dtype == torch.int64 and torch.equal(found["nearest"], index)
    rtol = 1e-14 if x.dtype is F64 else 1e-7
    torch.testing.assert_close(found["nearest_distance"].double(), want, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_equals_pairwise_distances(backend, dtype):
    """Tails of tiles of queries and of data; a query that is a datum; weights of 0; its own datum left out; L1."""
    for n, m, d in ((1, 1, 1), (70, 33, 3), (5, 9, 70), (130, 130, 2)):
        x, y = cloud(n, d, 1).to(dtype), cloud(m, d).to(dtype)
        y[m // 2] = x[0]
        w = (torch.rand(m, dtype=F64) > 0.5).double()
        w[0] = 1.0
        check(kde.evaluate(x, y, 1.0, outputs=OUTPUTS), x, y)
        check(kde.evaluate(x, y, 1.0, outputs=OUTPUTS, weights=w), x, y, w)
        check(kde.evaluate(x, y, 1.0, outputs=OUTPUTS, kernel="laplace"), x, y, p=1)
        if n > 1:
            check(kde.evaluate(x, x, 1.0, outputs=OUTPUTS, exclude_self=True), x, x, own=True)


def test_edges(backend):
    x, y = cloud(6, 2, 1), cloud(9, 2)
    y[7] = y[3] = x[4]  # equal ones: the first
    y[0, 1], y[1, 0] = torch.nan, torch.inf
    x[2, 0] = torch.nan
    found = kde.evaluate(x, y, 1.0, outputs=("nearest_distance", "nearest"))
    assert list(found) == ["nearest_distance", "nearest"]
    assert found["nearest"][4] == 3 and found["nearest_distance"][4] == 0
    assert found["nearest"][2] == -1 and found["nearest_distance"][2].isnan()
    assert found["nearest"].min(0).values == -1 and not (found["nearest"] == 0).any()
    for data, options in ((y[:0], {}), (x[:1], {"exclude_self": True})):
        none = kde.evaluate(x[:1], data, 1.0, outputs=OUTPUTS, **options)
        assert none["nearest"].tolist() == [-1] and none["nearest_distance"].tolist() == [torch.inf]
    assert kde.evaluate(x[:0], y, 1.0, outputs=OUTPUTS)["nearest"].shape == (0,)
    batched = kde.evaluate(cloud(12, 2).reshape(3, 4, 2), y[2:], 1.0, outputs=("log_prob", "nearest"))
    assert batched["nearest"].shape == batched["log_prob"].shape == (3, 4)
    single = kde.evaluate(x.numpy(), y[2:].numpy(), 1.0, outputs=OUTPUTS)
    assert isinstance(single["nearest"], np.ndarray) and single["nearest"].dtype == np.int64


def test_instruction_sets(isa):
    for dtype in (F64, torch.float32):
        x, y = cloud(75, 19, 1).to(dtype), cloud(41, 19).to(dtype)
        check(kde.evaluate(x, y, 1.0, outputs=OUTPUTS), x, y)
        check(kde.evaluate(x, x, 1.0, outputs=OUTPUTS, exclude_self=True), x, x, own=True)


def test_streams():
    """Chunk by chunk and merged as at once, beside sums and alone."""
    x, y = cloud(30, 3, 1), cloud(50, 3)
    for outputs in (OUTPUTS, ("log_prob", *OUTPUTS, "laplace_factor")):
        want = kde.evaluate(x, y, 0.5, outputs=outputs)
        state, other = (kde.KDEState(x, 0.5, outputs=outputs) for _ in range(2))
        found = state.update(y[:17]).update(y[17:20]).merge(other.update(y[20:])).result()
        for name in outputs:
            torch.testing.assert_close(found[name], want[name], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="merge needs two states"):
        state.merge(kde.KDEState(x, 0.5))


def test_derivatives_and_tracing():
    x, y = (t.requires_grad_() for t in (cloud(4, 3, 1), cloud(5, 3)))

    def distance(x, y):
        return kde.evaluate(x, y, 1.0, outputs=OUTPUTS)["nearest_distance"]

    assert gradcheck(distance, (x, y))

    def slope(x, y):
        return torch.func.grad(lambda a: distance(a, y).sum())(x)

    want = torch.autograd.grad(distance(x, y).sum(), x)[0]
    torch.testing.assert_close(slope(x.detach(), y.detach()), want)
    compiled = torch.compile(distance, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x, y).sum(), x)[0], want)
    compiled = torch.compile(slope, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.detach(), y.detach()), want)
