"""What ``python -m fokker bench`` times: each entry a set of contenders that compute the same thing, ours first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .. import bessel, random, vmf
from .._backend import use_backend
from .._mixture import affine_moments

Run = Callable[[], Any]
F64, F32 = torch.float64, torch.float32


@dataclass
class Bench:
    """Contenders by name, ours first; the ratio is a contender's time over ours."""

    name: str
    contenders: dict[str, Run]
    #: contender -> ratio asked for (at least)
    asked: dict[str, float] = field(default_factory=dict)
    #: results of one run, for a rate; bytes moved, arithmetic operations and exponentials, for the roofline
    elements: int = 0
    bytes: int = 0
    flops: float = 0.0
    exps: float = 0.0
    #: the operations are float64's
    wide: bool = False
    note: str = ""
    family: str = ""


def _overhead() -> Iterator[Bench]:
    v, x = torch.rand(4), torch.rand(4) + 0.5
    leaf = x.clone().requires_grad_()
    add = functools.partial(torch.add, v, x)
    times = 200

    def repeat(run: Run) -> Run:
        def go() -> None:
            for _ in range(times):
                run()

        return go

    yield Bench(
        "eager call, 4 elements",
        {"fokker": repeat(lambda: bessel.log_iv(v, x)), "torch.add": repeat(add)},
        {"torch.add": 1 / 2.5},
        elements=times,
        note="200 calls; asked: at most 2.5 times torch.add",
    )
    yield Bench(
        "eager call with gradient, 4 elements",
        {"fokker": repeat(lambda: bessel.log_iv(v, leaf)), "torch.add": repeat(add)},
        {"torch.add": 1 / 7.5},
        elements=times,
        note="200 forward calls; asked: at most 7.5 times torch.add",
    )


def _vmf() -> Iterator[Bench]:
    g = torch.Generator().manual_seed(3)
    k = torch.rand(8192, dtype=F64, generator=g) * 1000
    r = vmf.mean_resultant_length(2048, k)
    yield Bench(
        "vmf concentration from resultant, d=2048",
        {
            "fokker": lambda: vmf.concentration_from_resultant(2048, r),
            "reference": _reference(lambda: vmf.concentration_from_resultant(2048, r)),
        },
        elements=8192,
    )
    yield Bench(
        "vmf log_normalizer, d=2048",
        {"fokker": lambda: vmf.log_normalizer(2048, k), "reference": _reference(lambda: vmf.log_normalizer(2048, k))},
        elements=8192,
    )
    x = torch.randn(60000, 2048, generator=g)
    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True)
    yield Bench(
        "vmf.fit, 60,000 x 2,048 float32",
        {"fokker": lambda: vmf.fit(x), "torch sum over rows": lambda: x.sum(0)},
        {"torch sum over rows": 1 / 1.5},
        elements=x.numel(),
        bytes=4 * x.numel(),
        note="asked: at most 1.5 times the time to read the data once and sum it",
    )
    del x
    x = torch.randn(16384, 512, generator=g)
    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True)
    means = x[:256].clone()
    ks, logw = torch.full((256,), 50.0), torch.full((256,), -5.5)
    logits = torch.empty(16384, 256)
    yield Bench(
        "vMF mixture log_prob, 16,384 x 512, 256 components",
        {
            "fokker": lambda: vmf.mixture_log_prob(x, means, ks, logw),
            "its matrix product alone": lambda: torch.mm(x, means.t(), out=logits),
            "torch, unfused": lambda: torch.logsumexp(torch.addmm(logw, x, means.t() * 50.0), 1),
        },
        {"its matrix product alone": 0.8},
        elements=16384,
        flops=2.0 * 16384 * 512 * 256,
    )
    bias, scale, first = vmf.log_normalizer(512, ks) + logw, torch.ones(16384), torch.empty(256, 512)
    weight = 50.0 * means

    def two_products() -> Any:
        torch.mm(x, weight.t(), out=logits)
        return torch.mm(logits.t(), x, out=first)

    yield Bench(
        "vMF mixture EM statistics, 16,384 x 512, 256 components",
        {"fokker": lambda: affine_moments(x, weight, bias, scale), "its two matrix products alone": two_products},
        {"its two matrix products alone": 0.8},
        elements=16384,
        flops=4.0 * 16384 * 512 * 256,
    )


def _reference(run: Run) -> Run:
    def go() -> Any:
        with use_backend("reference"):
            return run()

    return go


def _sampling() -> Iterator[Bench]:
    try:
        from scipy.stats import vonmises_fisher
    except ImportError:
        vonmises_fisher = None
    for d, n in ((128, 2000), (4096, 60)):
        mean = torch.zeros(d, dtype=F64)
        mean[1] = 1.0
        k = torch.tensor(100.0, dtype=F64)
        single = mean.float(), k.float()
        contenders: dict[str, Run] = {
            "fokker": lambda mean=mean, k=k, n=n: vmf.sample(mean, k, (n,), seed=1),
            "fokker float32": lambda s=single, n=n: vmf.sample(*s, (n,), seed=1),
        }
        if vonmises_fisher is not None:
            law = vonmises_fisher(mean.numpy(), 100.0)
            rng = np.random.default_rng(1)
            contenders["SciPy rvs"] = lambda law=law, rng=rng, n=n: law.rvs(n, random_state=rng)
        yield Bench(f"vMF sampling, d={d}", contenders, {"SciPy rvs": 10.0}, elements=n * d, bytes=8 * n * d)


def on_threads(threads: int, run: Run, times: int = 1) -> Run:
    """``times`` calls of ``run`` on so many threads; a change of their number makes torch start them again."""

    def go() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for _ in range(times):
                run()
        finally:
            torch.set_num_threads(before)

    return go


def _random() -> Iterator[Bench]:
    """Noise of a batch of 64 x 3 x 64 x 64; asked of float32 normals: 3.4 / 1.1 of torch's on one core."""
    shape = (3, 64, 64)
    rng = np.random.default_rng(1)

    def torch_gumbel(out: Any) -> Any:
        return out.exponential_().log_().neg_()

    opponents: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
        "normal": (lambda out: out.normal_(), lambda out: rng.standard_normal(dtype=out.dtype, out=out)),
        "uniform": (lambda out: out.uniform_(), lambda out: rng.random(dtype=out.dtype, out=out)),
        "exponential": (
            lambda out: out.exponential_(),
            lambda out: rng.standard_exponential(dtype=out.dtype, out=out),
        ),
        "gumbel": (torch_gumbel, None),
        "rademacher": (lambda out: out.bernoulli_(0.5).mul_(2).sub_(1), None),
    }
    for dtype in (F32, F64):
        for name, (by_torch, by_numpy) in opponents.items():
            for single in (True, False) if name == "normal" else (False,):
                out = torch.empty(64, *shape, dtype=dtype)
                draw = functools.partial(getattr(random, name), 64, shape, seed=1, out=out)
                contenders: dict[str, Run] = {
                    "fokker": draw,
                    "torch": functools.partial(by_torch, torch.empty_like(out)),
                }
                if by_numpy is not None:
                    contenders["NumPy"] = functools.partial(by_numpy, np.empty(out.shape, out.numpy().dtype))
                if single:
                    contenders = {k: on_threads(1, run) for k, run in contenders.items()}
                asked = {"torch": 3.1} if single and dtype is F32 else {}
                label = f"random.{name} {str(dtype)[6:]}, 64 x 3 x 64 x 64{', one thread' if single else ''}"
                yield Bench(label, contenders, asked, elements=out.numel(), bytes=out.nbytes)
    out = torch.empty(64, *shape).to(memory_format=torch.channels_last)
    yield Bench(
        "random.normal float32 channels_last, 64 x 3 x 64 x 64",
        {
            "fokker": functools.partial(random.normal, 64, shape, seed=1, out=out),
            "torch": functools.partial(torch.empty_like(out).normal_),
        },
        elements=out.numel(),
        bytes=out.nbytes,
    )
    path = torch.empty(64, *shape)
    yield Bench(
        "random.brownian float32 (0.123, 0.133), 64 x 3 x 64 x 64",
        {
            "fokker": functools.partial(random.brownian, 64, shape, 0.123, 0.133, seed=1, out=path),
            "torch.randn": functools.partial(torch.empty_like(path).normal_),
        },
        elements=path.numel(),
        bytes=path.nbytes,
        note="36 normals an element; every grid of times sees the same path",
    )


def families(points: int = 8192) -> dict[str, tuple[Callable[[], Iterator[Bench]], ...]]:
    """What makes the entries of each family."""
    from . import (
        benches_bessel,
        benches_denoiser_blocks,
        benches_denoiser_groups,
        benches_denoiser_heads,
        benches_denoiser_losses,
        benches_denoiser_norms,
        benches_density,
        benches_kde,
        benches_schedulers,
        benches_sde,
        benches_systems,
    )

    return {
        "Calls": (_overhead,),
        "Bessel functions": (functools.partial(benches_bessel.benches, points),),
        "von Mises-Fisher": (_vmf, _sampling),
        "Noise": (_random,),
        "Kernel density sums": (benches_kde.benches,),
        "Mixtures and pairwise sums": (benches_density.benches,),
        "SDE steps": (benches_sde.benches,),
        "Schedulers": (benches_schedulers.benches,),
        "Denoiser blocks": (
            benches_denoiser_blocks.benches,
            benches_denoiser_groups.benches,
            benches_denoiser_heads.benches,
            benches_denoiser_losses.benches,
            benches_denoiser_norms.benches,
        ),
        "Systems": (benches_systems.benches,),
    }


def benches(points: int = 8192) -> Iterator[Bench]:
    """All of them, family by family; built one at a time."""
    for family, makers in families(points).items():
        for make in makers:
            for bench in make():
                bench.family = family
                yield bench
