"""Steps to try the kernels of `fokker.sde` on, how far a result may be off, and arguments of the registered ops."""

import torch
from conftest import BACKENDS

import fokker
from fokker._sde_step import affine_step

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
#: a sum of terms of order one, and one more rounding for a half
BOUNDS = {torch.float64: 1e-13, torch.float32: 4e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SHAPES = [(3,), (5, 1), (3, 7), (2, 3, 24, 43), (3, 20, 9, 11), (2, 130, 5, 6), (70, 2)]
#: for the emulator, which takes a few microseconds a thread
SMALL = [(3,), (5, 1), (3, 7), (2, 3, 4, 9), (2, 20, 3, 3)]
SETTINGS = [
    {},
    {"seed": 5, "step": 3, "stream": 2},
    {"seed": 5, "element_offset": 3, "results": 2, "dots": True},
    {"seed": 1, "exponential": True},
    {"results": 3, "dots": True},
    {"clip": 0.8, "results": 2, "seed": 3, "sample_ids": 2**40},
    {"clip": 0.5, "exponential": True, "dots": True},
]


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


def plain(t):
    return t


def channels_last(t):
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def spaced(t):
    return torch.stack([t, t], -1)[..., 0]


def flat(found):
    return [found] if isinstance(found, torch.Tensor) else [t for part in found for t in flat(part)]


def inputs(shape, terms, dtype, settings, device="cpu", layout=plain, shared=False, term_dtype=None, row=None):
    """State, terms and coefficients of a step, the same ones for every backend."""
    g = torch.Generator().manual_seed(3)

    def normal(size, dtype):
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    wide = torch.float64 if dtype is torch.float64 else torch.float32
    columns = 1 + terms + ("seed" in settings) + 2 * ("clip" in settings)
    results = settings.get("results", 1)
    size = [] if row is None else [row]
    size += [] if shared else [shape[0]]
    size += [results] * (results > 1) + [columns]
    x = layout(normal(shape, dtype)).to(device)
    m = [layout(normal(shape, term_dtype or dtype)).to(device) for _ in range(terms)]
    return x, m, 0.6 * normal(size, wide).to(device)


def reference(x, m, c, settings):
    with fokker.use_backend("reference"):
        return flat(affine_step(x.cpu(), [t.cpu() for t in m], c.cpu(), **settings))


def close(got, want, dtype, name=""):
    for a, b in zip(flat(got), want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        bound, size = BOUNDS[dtype], b.double().abs()
        if b.dim() == 3 and b.shape[1] == b.shape[2] and torch.equal(b, b.mT):  # inner products, of unrounded results
            length = b.diagonal(dim1=1, dim2=2).sqrt()
            size = length[:, :, None] * length[:, None, :]
            bound = 1e-5 if dtype is not torch.float64 else bound
        error = ((a.cpu().double() - b.double()).abs() / size.clamp(min=1)).max()
        assert error <= bound, f"{name}: {float(error):.3g}"


def step_arguments(name: str):
    """Positional arguments of an op of that name."""
    g = torch.Generator().manual_seed(2)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    x, m = normal(3, 2, 5), normal(3, 2, 5)
    ids, counters = torch.arange(3), (True, 5, 1, 0, 0, 2)  # noise: seed, step, stream, first id, offset
    if name == "sde_resample":
        return normal(3, 8), None, None, ids, 3, 6, None, 5, 1, 4, 0
    if name == "sde_absorb":
        return torch.full((3, 4), 7), normal(3, 4, 7), torch.ones(3), None, None, ids, 7, 1.0, 5, 1, 0
    slots = (None,) * 7
    if name == "sde_gram":
        return x, m, *slots, None, None, ids, *counters
    results = 2 if "vjp" in name else int(name.removeprefix("sde_affine_")[0])
    table = normal(4, 3, *[results] * (results > 1), 5)
    head = (x, table, m, *slots, torch.tensor(2), None, None, ids)
    settings = (-1, *counters, False, 0.8)
    if "vjp" in name:
        return *head, normal(3, 2, 5), normal(3, 2, 5), None, *settings, 2, 0b1000000011
    return *head, *settings
