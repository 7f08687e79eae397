"""The Triton kernels, interpreted or on a GPU: truth tables, edges, layouts, derivatives; compilation for sm_90.

The interpreter wants TRITON_INTERPRET=1 before Triton is imported: without it, and without a GPU, one test runs the
quick tests of this file and of tests/test_triton_denoiser.py in a process of its own.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreting import DEVICE, IN_A_PROCESS, RUNS, run_in_a_process

import fokker
from fokker import _vmf_ops, bessel, vmf
from fokker.bessel import FUNCTIONS
from fokker.cases import CASES, table
from fokker.triton_kernels import configurations

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
DTYPES = (torch.float64, torch.float32)
F64 = torch.float64
NORMS = ("denoiser_layer_", "denoiser_rms_", "denoiser_gate")
INF, NAN = math.inf, math.nan


def with_triton(call, *args, **options):
    """``call`` with its tensors on the device and its results back, all by the Triton kernels."""
    with fokker.use_backend("triton"):
        out = call(*(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in args), **options)
    return tuple(o.cpu() for o in out) if isinstance(out, tuple) else out.cpu()


def thin(n, keep=230):
    return slice(None, None, max(1, n // keep))


def point(args, worst):
    return [float(a[worst]) if isinstance(a, torch.Tensor) else a for a in args]


@IN_A_PROCESS
def test_quick_ones_interpreted_in_a_process():
    files = [__file__, str(Path(__file__).with_name("test_triton_denoiser.py"))]
    run_in_a_process(*files, "-k", "quick")


# ---- values --------------------------------------------------------------------------------------------------------
@RUNS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_quick(name):
    """A few points of every regime, float32, and their gradient."""
    v = torch.tensor([0.0, 0.3, 4.5, 9.0, 0.7, 8.0, 30.0, 1e5, 2.0])
    x = torch.tensor([0.01, 0.2, 3.0, 0.05, 7.0, 5.0, 20.0, 1.0, 1e25])
    want = getattr(fokker.reference.bessel, name)(v.double(), x.double())
    got = with_triton(getattr(bessel, name), v, x)
    assert got.dtype == torch.float32
    assert bool((CASES[name].error(got, want) <= CASES[name].bound(torch.float32, (v, x))).all()), (got, want)
    for got, want in zip(
        with_triton(bessel._grad, v, x, FUNCTIONS.index(name), True, True),
        fokker.reference.bessel.bessel_grad(name, v.double(), x.double()),
        strict=True,
    ):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-6)


HEADS = ("qk_rms_rope", "qk_layer_rope", "qkv_rms_rope", "swiglu", "geglu_exact", "gelu_tanh", "silu_gate", "mp_silu")


@RUNS
@pytest.mark.parametrize("name", HEADS)
def test_quick_heads(name):
    """Attention heads and activations, one small call each."""
    case = CASES[f"denoiser_{name}"]
    args = case.make(300, torch.float32, torch.Generator().manual_seed(3))
    with fokker.use_backend("reference"):
        want = case.call(*(a.double() for a in args))
    assert float(case.error(with_triton(case.call, *args), want).max()) <= case.tolerance[torch.float32]


@RUNS
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("gaussian_") or n == "pairwise_energy_distance"])
def test_quick_mixtures(name):
    """Gaussian mixtures and sums of distances; tests/test_triton_gaussian.py has the rest."""
    case = CASES[name]
    args = case.make(20, torch.float32, torch.Generator().manual_seed(3))
    with fokker.use_backend("reference"):
        want = case.call(*(a.double() for a in args))
    assert float(case.error(with_triton(case.call, *args), want).max()) <= case.tolerance[torch.float32]


@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values(name, dtype):
    """Against ball arithmetic, every part of the table; float64 also three ulp far from the origin."""
    case = CASES[name]
    for args, hi, lo in case.judged(dtype):
        pick = thin(len(hi))
        args, hi, lo = tuple(a[pick] for a in args), hi[pick], lo[pick]
        error = case.error(with_triton(case.call, *args), hi, lo)
        share = error / case.bound(dtype, args)
        worst = int(share.argmax())
        assert share[worst] <= 1, (name, point(args, worst), float(error[worst]))
        if dtype is F64:
            far = torch.where(torch.hypot(*args) >= 25, error, 0.0)
            worst = int(far.argmax())
            assert far[worst] <= (7e-16 if name in ("log_iv", "log_kv") else 1e-15), (name, point(args, worst))


@RUNS
def test_order_zero_near_zero_is_relatively_accurate():
    t = table("bessel_f64")
    at = (t["v"] == 0) & (t["x"] > 1e-150)
    v, x, hi, lo = (torch.from_numpy(t[k][at]) for k in ("v", "x", "log_iv_hi", "log_iv_lo"))
    assert float((((with_triton(bessel.log_iv, v, x) - hi) - lo).abs() / hi.abs()).max()) <= 4e-15


@RUNS
def test_neighbours_in_a_block_change_no_more_than_roundings():
    """A block takes as many terms as its worst element wants: alone or beside others, an element is as good."""
    v = torch.tensor([3.0, 40.0, 0.5, 1000.0, 0.0], dtype=F64)
    x = torch.tensor([5.0, 30.0, 0.1, 5.0, 2000.0], dtype=F64)
    for name in ("log_iv", "log_kv", "kv_ratio"):
        together = with_triton(getattr(bessel, name), v, x)
        alone = torch.stack([with_triton(getattr(bessel, name), *p) for p in zip(v, x, strict=True)])
        torch.testing.assert_close(together, alone, rtol=8e-16, atol=8e-16)


# ---- derivatives ---------------------------------------------------------------------------------------------------
def slope_error(got, hi, lo):
    """|error| over max(|truth|, 1) where the type can hold the truth."""
    size = torch.finfo(got.dtype)
    ok = hi.isfinite() & (hi.abs() < size.max / 4)
    return torch.where(ok, ((got.double() - hi) - lo).abs() / hi.abs().clamp(min=1.0), 0.0)


@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_derivatives(name, dtype):
    points, truth = ("bessel_f64", "bessel_grad_f64") if dtype is F64 else ("bessel_f32", "bessel_f32")
    t, g = table(points), table(truth)
    pick = thin(len(t["v"]))
    v, x = (torch.from_numpy(t[k][pick]) for k in ("v", "x"))
    both = with_triton(bessel._grad, v, x, FUNCTIONS.index(name), True, True)
    for got, along in zip(both, ("dv", "dx"), strict=True):
        key = f"{name}_{along}"
        if key + "_hi" not in g:  # log_ive and log_kve share d/dv with log_iv and log_kv
            key = key.replace("ve_", "v_")
        hi = torch.from_numpy(g[f"{key}_hi"][pick])
        lo = torch.from_numpy(g[f"{key}_lo"][pick]).double() if f"{key}_lo" in g else torch.zeros_like(hi)
        error = slope_error(got, hi, lo)
        worst = int(error.argmax())
        assert error[worst] <= (4e-15 if dtype is F64 else 2e-6), (key, point((v, x, got, hi), worst))


@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["log_iv", "log_kv", "iv_ratio", "kv_ratio"])
def test_second_derivatives(name, dtype):
    t = table("bessel_hess_f64")
    pick = thin(len(t["v"]))
    v, x = (torch.from_numpy(t[k][pick]) for k in ("v", "x"))
    # Rounding v and x to float32 moves the truth: there only points that float32 holds are judged.
    exact = (v.to(dtype).double() == v) & (x.to(dtype).double() == x)
    for got, along in zip(
        with_triton(bessel._hess, v.to(dtype), x.to(dtype), FUNCTIONS.index(name)), ("dvv", "dvx", "dxx"), strict=True
    ):
        hi, lo = (torch.from_numpy(t[f"{name}_{along}_{part}"][pick]) for part in ("hi", "lo"))
        error = torch.where(exact, slope_error(got, hi, lo), 0.0)
        worst = int(error.argmax())
        assert error[worst] <= (1e-13 if dtype is F64 else 1e-5), (name, along, point((v, x, got, hi), worst))


@RUNS
def test_only_the_wanted_gradient():
    v, x = torch.rand(5) * 20, torch.rand(5) * 20
    both = with_triton(bessel._grad, v, x, 0, True, True)
    for i, need in enumerate([(True, False), (False, True)]):
        some = with_triton(bessel._grad, v, x, 0, *need)
        assert torch.equal(some[i], both[i]) and some[1 - i].numel() == 0


@RUNS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autograd_twice(name):
    """Through the op layer: gradients and second gradients against the reference's."""
    found = {}
    for backend in ("triton", "reference"):
        v = torch.tensor([[0.3, 2.6, 9.5, 40.0]], dtype=F64, device=DEVICE, requires_grad=True)
        x = torch.tensor([[0.4], [3.0], [60.0]], dtype=F64, device=DEVICE, requires_grad=True)
        with fokker.use_backend(backend):
            first = torch.autograd.grad(getattr(bessel, name)(v, x).sum(), (v, x), create_graph=True)
            second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (v, x))
        found[backend] = [*first, *second]
    for got, want in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


# ---- edges ---------------------------------------------------------------------------------------------------------
@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges(name, dtype):
    """x = 0, x or v = inf, nan, negative: the reference's values, exactly where they are 0, infinite or nan."""
    v = torch.tensor([0.0, 0.5, 3.0, 1e5, INF, NAN, -1.0, -INF], dtype=dtype)[:, None]
    x = torch.tensor([0.0, -0.0, INF, NAN, -1.0, 2.0], dtype=dtype)[None]
    got = with_triton(getattr(bessel, name), v, x)
    with fokker.use_backend("reference"):
        want = getattr(bessel, name)(v, x)
    torch.testing.assert_close(got, want, rtol=1e-6 if dtype is torch.float32 else 1e-14, atol=0, equal_nan=True)


@RUNS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_at_the_edges(name):
    v = torch.tensor([0.0, 1.5, 0.0, 1.5, -1.0, 2.0, NAN], dtype=F64)
    x = torch.tensor([0.0, 0.0, INF, INF, 1.0, -1.0, 1.0], dtype=F64)
    f = FUNCTIONS.index(name)
    for got in (*with_triton(bessel._grad, v, x, f, True, True), *with_triton(bessel._hess, v, x, f)):
        assert not bool(got[:4].isnan().any()) and bool(got[4:].isnan().all()), (name, got)


@RUNS
@pytest.mark.parametrize(("dtype", "big"), [(F64, 1e200), (torch.float32, 1e25)], ids=str)
def test_large_numbers_do_not_overflow(dtype, big):
    v = torch.tensor([1.0, big, big, big * 1e-5, 0.0], dtype=dtype)
    x = torch.tensor([big, 1.0, big, big, torch.finfo(dtype).max], dtype=dtype)
    for name in FUNCTIONS:
        assert not bool(with_triton(getattr(bessel, name), v, x).isnan().any()), name
    scaled = with_triton(bessel.log_ive, v[:1], x[:1])  # I_1(x) ~ e^x / sqrt(2 pi x)
    assert float(scaled) == pytest.approx(-0.5 * math.log(2 * math.pi * float(x[0])), rel=1e-6)


# ---- layouts and types ---------------------------------------------------------------------------------------------
@RUNS
def test_layouts():
    """Broadcast, transposed, sliced, 0-dimensional, empty and many-dimensional inputs, each where it lies."""
    v, x = torch.rand(5, dtype=F64) * 30, torch.rand(7, 5, dtype=F64) * 60
    full = with_triton(bessel.log_iv, v.expand(7, 5).contiguous(), x)

    def same(got, want):
        assert got.shape == want.shape and got.is_contiguous()
        torch.testing.assert_close(got, want, rtol=2e-15, atol=2e-15)

    same(with_triton(bessel.log_iv, v, x), full)
    same(with_triton(bessel.log_iv, v, x.t().contiguous().t()), full)
    same(with_triton(bessel.log_iv, v[:, None], x.t()), full.t().contiguous())
    same(with_triton(bessel.log_iv, v[::2], x[1:, ::2]), full[1:, ::2].contiguous())
    same(with_triton(bessel.log_iv, v[2], x[:, 2]), full[:, 2].contiguous())
    same(with_triton(bessel.log_iv, v[2], x[3, 2]), full[3, 2])
    same(with_triton(bessel.log_iv, v[:0], x[:, :0]), full[:, :0].contiguous())
    same(with_triton(bessel.log_iv, -torch.imag(torch.complex(v, v).conj()), x), full)
    grid = torch.rand(4, 3, 4, 3, 2, 3, dtype=F64)[::2, ::2, ::2, ::2, :, ::2].to(DEVICE) * 60
    for tensor in (grid, grid[0], grid[0, 0]):  # six, five and four dimensions that do not collapse
        same(with_triton(bessel.log_kv, v[1], tensor), with_triton(bessel.log_kv, v[1], tensor.contiguous()))


@RUNS
def test_blocks_and_tails():
    """More elements than a block, and not a multiple of it."""
    x = torch.linspace(0.01, 90, 1031)
    with fokker.use_backend("reference"):
        want = bessel.log_ive(torch.tensor(2.5, dtype=F64), x.double())
    assert bool((CASES["log_ive"].error(with_triton(bessel.log_ive, torch.tensor(2.5), x), want) <= 2.1e-7).all())


@RUNS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_compute_in_float32(dtype):
    v, x = (torch.rand(200) * 20).to(dtype), (torch.rand(200) * 60).to(dtype)
    for call in (bessel.log_iv, bessel.kv_ratio):
        assert torch.equal(with_triton(call, v, x), with_triton(call, v.float(), x.float()).to(dtype))
    got = with_triton(vmf.log_normalizer, 16, x)
    assert torch.equal(got, with_triton(vmf.log_normalizer, 16, x.float()).to(dtype))


# ---- von Mises-Fisher ----------------------------------------------------------------------------------------------
@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", _vmf_ops.FUNCTIONS)
def test_vmf_values(name, dtype):
    """Against ball arithmetic (float64) and the float64 reference (float32)."""
    case = CASES[f"vmf_{name}"]
    count = 0
    for args, hi, lo in list(case.judged(dtype))[:: 2 if dtype is F64 else 1]:  # every other dimension
        pick = thin(len(hi))
        args, hi, lo = (args[0][pick], *args[1:]), hi[pick], None if lo is None else lo[pick]
        error = case.error(with_triton(case.call, *args), hi, lo)
        worst = int(error.argmax())
        assert error[worst] <= case.bound(dtype, args), (name, point(args, worst), float(error[worst]))
        count += len(hi)
    assert count >= 100


@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 1000])
def test_vmf_edges(dim, dtype):
    """k = 0, inf, negative, nan; R = 0, 1 and outside."""
    k = torch.tensor([0.0, INF, -1.0, NAN, 1e37 if dtype is torch.float32 else 1e300], dtype=dtype)
    r = torch.tensor([0.0, 1.0, -0.1, NAN, 1.1], dtype=dtype)
    for name in _vmf_ops.FUNCTIONS:
        at = r if name.startswith("concentration") else k
        got = with_triton(_vmf_ops.scalar[name], at, dim)
        with fokker.use_backend("reference"):
            want = _vmf_ops.scalar[name](at, dim)
        tolerance = 1e-6 if dtype is torch.float32 else 1e-14
        close = dict(rtol=tolerance, atol=torch.finfo(dtype).tiny, equal_nan=True)
        torch.testing.assert_close(got, want, **close, msg=lambda m, n=name: f"{n}: {m}")


@RUNS
@pytest.mark.parametrize("name", [n for n in _vmf_ops.FUNCTIONS if CASES[f"vmf_{n}"].gradients])
def test_vmf_gradients(name):
    inverse = name.startswith("concentration")
    found = []
    for backend in ("triton", "reference"):
        k = torch.tensor([0.1, 0.4, 0.8, 0.95] if inverse else [0.2, 3.0, 50.0, 400.0], dtype=F64, device=DEVICE)
        k.requires_grad_()
        with fokker.use_backend(backend):
            (slope,) = torch.autograd.grad(_vmf_ops.scalar[name](k, 6).sum(), k)
        found.append(slope.cpu())
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


# ---- ahead of time -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_every_kernel_compiles_for_sm_90_without_spills():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    tool = Path(__file__).parents[1] / "tools" / "triton_aot.py"
    run = subprocess.run([sys.executable, str(tool)], env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


# ---- modulated norms -------------------------------------------------------------------------------------------------
@RUNS
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(NORMS)])
def test_quick_norms(name):
    """Rows of one block and of several, float32."""
    case = CASES[name]
    args = case.make(200, torch.float32, torch.Generator().manual_seed(3))
    want = case.call(*(a.double() for a in args))
    for block in (None, 16):
        table = configurations.CONFIGURATIONS["norms"]
        with pytest.MonkeyPatch.context() as patch:
            if block is not None:
                patch.setitem(table, torch.float32, configurations.Configuration(block, 4))
            got = with_triton(case.call, *args)
        assert bool((case.error(got, want) <= case.bound(torch.float32, args)).all()), block
