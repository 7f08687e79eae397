"""Every Triton kernel with the compile-time arguments that its launches give it: what triton_aot.py compiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fokker.triton_kernels import (
    bessel,
    distance,
    gates,
    gaussian,
    gaussian_levels,
    groups,
    heads,
    heads_vjp,
    kde,
    kde_pairs,
    losses,
    nearest,
    norms,
    norms_vjp,
    particles,
    random,
    sde,
    sde_vjp,
    vmf,
)
from fokker.triton_kernels.configurations import configuration

TARGET = GPUTarget("cuda", 90, 32)
DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}


@dataclass(frozen=True)
class Variant:
    """One kernel with its compile-time arguments."""

    name: str
    table: str
    kernel: Any
    dtype: torch.dtype
    pointers: tuple[str, ...]
    constants: dict[str, Any]
    #: types of arguments that are neither pointers to dtype nor sizes
    kinds: dict[str, str] = field(default_factory=dict)

    def compile(self) -> Any:
        """The compiled kernel, with the committed configuration."""
        chosen = configuration(self.table, self.dtype)
        constants = {"BLOCK": chosen.block, **self.constants}
        if chosen.columns and "BM" in self.kernel.arg_names:
            constants["BM"] = chosen.columns
        kinds = {p: "*" + DTYPES[self.dtype] for p in self.pointers} | self.kinds
        integer = "i64"
        if self.constants.get("DIMS", 1) == 1:  # as at a launch over contiguous memory: ones become constants
            integer = "i32"
            constants |= {a: 1 for a in ("n1", "n2", "n3", "v3", "x3", "s3") if a in self.kernel.arg_names}
        signature = {a: "constexpr" if a in constants else kinds.get(a, integer) for a in self.kernel.arg_names}
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants)
        return triton.compile(source, target=TARGET, options=chosen.options)


def density_sums() -> Iterator[Variant]:
    """Log density; score; given values; the wide second pass; inner products; the backward pass; a compact kernel."""
    plain = dict.fromkeys(("BIAS", "WEIGHT", "FIXED", "EXCLUDE", "SQUARE", "DELTA", "PRODUCT", "DIRECT"), False)
    plain |= {"KERNEL": 0, "VALUES": 0, "PER": 0, "BK": 16, "BV": 16, "SPLIT": "bf16x6"}
    plain |= dict.fromkeys(("WIDE", "MARK", "AGAIN"), False)
    score = {"VALUES": 3, "BV": 64, "SQUARE": True, "DELTA": True, "BIAS": True}
    doubles = dict.fromkeys(kde.DOUBLES, "*fp64") | {"doubt": "*i8"}
    for dtype in DTYPES:
        single = dtype is torch.float32
        forms = {
            "gaussian log_prob": {},
            "gaussian score": score,
            "gaussian score d <= 8": {**score, "DIRECT": True, "BV": 16},
            "gaussian values": {"VALUES": 1, "BV": 64, "PER": 1},
            "gaussian backward": {**score, "FIXED": True, "WEIGHT": True, "SQUARE": False, "EXCLUDE": True},
        }
        if single:
            forms["gaussian products log_prob"] = {"PRODUCT": True}
            forms["gaussian products score"] = {**score, "PRODUCT": True}
            forms["gaussian products backward"] = {**forms["gaussian backward"], "PRODUCT": True}
        forms |= {f"{k} log_prob": {"KERNEL": i, "PER": 2} for i, k in enumerate(kde_pairs.KERNELS) if i}
        for name, changes in forms.items():
            constants = {**plain, "WIDE": not single, "MARK": single, **changes}
            table = "kde_products" if constants["PRODUCT"] else "kde"
            yield Variant(f"kde {name}", table, kde.kde_kernel, dtype, kde.VALUES_OF_DTYPE, constants, doubles)
    kinds = doubles | dict.fromkeys(kde.VALUES_OF_DTYPE, "*fp32")
    constants = {**plain, **score, "WIDE": True, "AGAIN": True}
    yield Variant("kde gaussian score again", "kde", kde.kde_kernel, torch.float64, (), constants, kinds)


def variants(gradient_parts: bool) -> Iterator[Variant]:
    """Every kernel of the library."""
    pointers = ("v", "x", "out0", "out1", "out2")
    for dtype in DTYPES:
        for f, name in enumerate(bessel.FUNCTIONS):
            for order, table in enumerate(bessel.TABLES):
                parts = [(True, order > 0)]
                if order == 1 and gradient_parts:
                    parts += [(True, False), (False, True)]
                for first, second in parts:
                    constants = {"DIMS": 1, "F": f, "ORDER": order, "FIRST": first, "SECOND": second}
                    suffix = "" if first and (second or order == 0) else (" d/dv" if first else " d/dx")
                    label = f"{table} {name}{suffix}"
                    yield Variant(label, table, bessel.bessel_kernel, dtype, pointers, constants)
        for f, name in enumerate(vmf.FUNCTIONS):
            constants = {"DIMS": 1, "F": f}
            yield Variant(f"vmf {name}", "vmf", vmf.vmf_kernel, dtype, ("k", "constants", "out"), constants)
        yield from random_variants(dtype)
        yield from step_variants(dtype)
        yield from group_variants(dtype)
        yield from norm_variants(dtype)
        yield from particle_variants(dtype)
        yield from head_variants(dtype)
        yield from mixture_variants(dtype)
        yield from loss_variants(dtype)
    yield from density_sums()
    for slope in (False, True):
        operands = ("x", "y", "weight", "sums", "slope")
        name = f"distance sums{' and slopes' if slope else ''}"
        yield Variant(name, "distance", distance.distance_kernel, torch.float64, operands, {"SLOPE": slope})
    for dtype in DTYPES:
        for absolute in (False, True):
            constants = {"EXCLUDE": True, "ABSOLUTE": absolute}
            name = f"nearest{' by magnitudes' if absolute else ''}"
            yield Variant(name, "distance", nearest.nearest_kernel, dtype, ("x", "y"), constants, {"index": "*i64"})
    yield Variant(
        "bessel_value log_iv 4-d", "bessel_value", bessel.bessel_kernel, torch.float32, pointers,
        {"DIMS": 4, "F": 0, "ORDER": 0, "FIRST": True, "SECOND": False},
    )  # fmt: skip


def step_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """A plain step, one with noise and a clipped prediction, an exponential one, three results of eight terms."""
    pointers = ("x", *(f"m{k}" for k in range(1, 9)), "o1", "o2", "o3", "table")
    scalars = ("seed", "counter1", "first_id", "shift", "first_block", "n", "batch", "blocks")
    kinds = {a: "*i64" for a in ("row_at", "seed_at", "step_at", "ids")} | {a: "i64" for a in scalars}
    flags = dict.fromkeys(("NOISY", "EXPONENTIAL", "CLIPPED", "ROW", "SEED", "STEP", "IDS"), False)
    plain = {"K": 1, "R": 1, **flags, "CLIP": 0.0, "WIDE": dtype is torch.float64}
    noisy = {**plain, **dict.fromkeys(("NOISY", "ROW", "SEED", "STEP", "IDS"), True)}
    forms = {
        "step": plain,
        "step, noise, clip": {**noisy, "CLIPPED": True, "CLIP": 1.0},
        "exponential step": {**noisy, "EXPONENTIAL": True},
        "step, 8 terms, 3 results": {**noisy, "K": 8, "R": 3},
    }
    for name, constants in forms.items():
        yield Variant(f"sde {name}", "random", sde.affine_kernel, dtype, pointers, constants, kinds)
    kinds |= {"sums": "*fp64"}
    vectors = tuple(f"a{k}" for k in range(9))
    drawn = {k: noisy[k] for k in ("NOISY", "WIDE", "SEED", "STEP", "IDS")}
    yield Variant("sde gram", "random", sde.gram_kernel, dtype, vectors, {**drawn, "K": 3}, kinds)
    pointers += ("g1", "g2", "g3", *(f"d{k}" for k in range(9)))
    forms = {
        "vjp": {**plain, "K": 2, "C": 3, "SUMS": False, "WANTED": 7},
        "vjp, coefficients": {**noisy, "K": 2, "C": 6, "CLIPPED": True, "CLIP": 1.0, "SUMS": True, "WANTED": 7},
        "vjp, exponential": {**noisy, "K": 2, "C": 4, "EXPONENTIAL": True, "SUMS": True, "WANTED": 7},
    }
    for name, constants in forms.items():
        yield Variant(f"sde {name}", "random", sde_vjp.vjp_kernel, dtype, pointers, constants, kinds)


def particle_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Resampling, and the absorbing step."""
    integers = {a: "*i64" for a in ("seed_at", "step_at", "ids", "tokens", "ancestors")}
    counters = {"SEED": True, "STEP": True, "IDS": True}
    scalars = {a: "i64" for a in ("seed", "step", "first_id", "n", "count", "length", "size", "mask_id")}
    kinds = integers | scalars | {"work": "*fp64", "probability": "*fp32"}
    for name, constants in {"systematic": {"METHOD": 0}, "residual": {"METHOD": 3}}.items():
        constants |= {**counters, "THRESHOLD": 0.5}
        pointers = ("log_weights", "new_weights", "sizes")
        yield Variant(f"resample {name}", "resample", particles.resample_kernel, dtype, pointers, constants, kinds)
    constants = {**counters, "SCALE": 1.0, "GREEDY": False, "WIDE": dtype is torch.float64}
    absorb = kinds | {"out": "*i64"}
    yield Variant("absorb", "random", particles.absorb_kernel, dtype, ("logits",), constants, absorb)


def mixture_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Gaussian mixtures: diagonal roots, triangular ones of 32 and more rows, their log-sum-exp, pulls, moments."""
    pointers = ("weight", "x", "mean", "root", "pull", "bias", "offset", "joint", "log_sum", "out")
    pointers += ("alpha", "noise", "variance", "squared", "score", "posterior")
    split = "bf16x6" if dtype is torch.float32 else "ieee"
    forms: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("joint diagonal", "gaussian", gaussian.joint_diagonal_kernel, {}),
        ("log sum", "gaussian", gaussian.log_sum_kernel, {"SHARES": False}),
        ("shares", "gaussian", gaussian.log_sum_kernel, {"SHARES": True}),
        ("pull diagonal", "gaussian", gaussian.pull_diagonal_kernel, {"OFFSET": True}),
        ("moments", "gaussian_moments", gaussian.moments_kernel, {}),
    ]
    level = {"ONE_ALPHA": False, "ONE_NOISE": False}
    for isotropic in (False, True):
        joint = {"ISOTROPIC": isotropic, "DISTANCES": True, "LEAST": torch.finfo(dtype).tiny, **level}
        pull = {"ISOTROPIC": isotropic, "SCORE": True, "MEAN": True, **level}
        kind = "isotropic" if isotropic else "diagonal"
        forms.append((f"joint at levels, {kind}", "gaussian", gaussian_levels.joint_levels_kernel, joint))
        forms.append((f"pull at levels, {kind}", "gaussian", gaussian_levels.pull_levels_kernel, pull))
    for rows in (32, 64):
        product = {"BR": rows, "BK": gaussian.BK, "SPLIT": split}
        forms.append((f"joint {rows}", "gaussian", gaussian.joint_kernel, {"TRIANGULAR": rows == 64, **product}))
        forms.append((f"pull {rows}", "gaussian", gaussian.pull_kernel, {"OFFSET": rows == 32, **product}))
    for name, table, kernel, constants in forms:
        yield Variant(f"gaussian {name}", table, kernel, dtype, pointers, constants, {"sums": "*fp64"})


def group_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Group norms: sums and results, forward and backward, of a contiguous and of a channels_last x."""
    channel = ("mean", "factor", "addend", "pivot", "first", "second", "slope", "offset")
    pointers = ("x", "residual", "total", "grad", "grad_sum", "out", *channel)
    for table, columns in (("groups", {"BM": 1}), ("groups_last", {})):
        for backward in (False, True):
            kind = "backward" if backward else "forward"
            constants = {"BACKWARD": backward, "ACTIVATION": 1, **columns}
            sums = {**constants, "SUM": not backward}
            yield Variant(f"{table} sums {kind}", table, groups.sums_kernel, dtype, pointers, sums)
            results = {**constants, "ABOVE": backward}
            yield Variant(f"{table} {kind}", table, groups.apply_kernel, dtype, pointers, results)


def head_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Both norms with both rotary embeddings, of 72, 128 and 512; every gated activation."""
    pointers = ("x", "out", "weight", "bias", "cos", "sin")
    for name, norm, dim, rotary, interleaved in (
        ("rms", 1, 72, 72, True),
        ("layer", 2, 128, 128, False),
        ("partial layer", 2, 128, 32, False),
        ("rms", 1, 512, 512, False),
    ):
        flags = {"NORM": norm, "EPS": 1e-6, "INTERLEAVED": interleaved, "WHOLE": False, "ROPE": True}
        constants = {
            "DIM": dim,
            "ROTARY": rotary,
            **flags,
            "WEIGHT": True,
            "BIAS": norm == 2,
            "PAIRS": max(64, dim // 2),
            "xd": 1,
            "od": 1,
        }
        constants["BLOCK"] = configuration("heads", dtype).block // constants["PAIRS"]  # rows
        yield Variant(f"heads {name} norm {dim}", "heads", heads.norm_rope_kernel, dtype, pointers, constants)
        constants = {k: v for k, v in constants.items() if k != "BIAS"}
        kinds = {"sums": "*fp64", "grad": "*" + DTYPES[dtype]}
        for sums in (False, True):
            label = f"heads {name} norm {dim} backward{', sums' if sums else ''}"
            flags = {**constants, "SUMS": sums, "WANTED": True, "gd": 1}
            yield Variant(label, "heads_vjp", heads_vjp.norm_rope_vjp_kernel, dtype, pointers, flags, kinds)
    operands = ("gate", "value", "gate_bias", "value_bias", "out", "grad", "to_value")
    for kind, name in enumerate(("silu", "gelu tanh", "gelu", "mp silu")):
        for backward in (False, True):
            constants = {"DIMS": 2, "KIND": kind, "GATED": True, "BIAS": kind < 2, "BACKWARD": backward}
            label = f"gates {name}{' backward' if backward else ''}"
            yield Variant(label, "gates", gates.activation_kernel, dtype, operands, constants)
        del constants["BIAS"], constants["BACKWARD"]
        constants |= {"COLUMNS": 32, "across": 1}
        label = f"gates {name} backward, sums"
        yield Variant(label, "gates", gates.sums_kernel, dtype, operands, constants, {"sums": "*fp64"})


def norm_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """A modulated layer norm, the whole seam, one with all tables by RMS in two chunks, and a gated residual alone."""
    names = ("GATED", "GATE", "GATE_TABLE", "SHIFT", "SHIFT_TABLE", "SCALE", "SCALE_TABLE", "WEIGHT", "BIAS")
    plain = {"NORM": 1, "CHUNKS": 1, "EPS": 1e-6, "WIDE": dtype is torch.float64, **dict.fromkeys(names, False)}
    seam = {**plain, **dict.fromkeys(("GATED", "GATE", "SHIFT", "SCALE"), True)}
    forms = {
        "layer": {**plain, "SHIFT": True, "SCALE": True},
        "seam": seam,
        "rms, tables": {**seam, **dict.fromkeys(names, True), "NORM": 2, "CHUNKS": 2},
        "gate": {**plain, "NORM": 0, "GATED": True, "GATE": True},
    }
    for name, constants in forms.items():
        yield Variant(f"norms {name}", "norms", norms.norm_kernel, dtype, norms.POINTERS, constants)
    results = ("TO_X", "TO_BRANCH", "TO_GATE", "TO_SCALE", "SUM_P", "SUM_GATE", "WEIGHTED")
    plain |= {**dict.fromkeys(results, False), "NORMED": True, "ABOVE": False, "LONG": False}
    plain |= {"TOKENS": norms_vjp.norm_token_block}
    packed = dict.fromkeys(("sx2", "sh2", "sg2", "sgt", "sc2", "sct", "sa2", "sd2", "sw", "sb"), 1)
    for name in ("SHIFT", "SHIFT_TABLE", "CHUNKS"):
        del plain[name]
    gated = {**plain, **dict.fromkeys(("GATED", "GATE", "ABOVE", "TO_X", "TO_BRANCH", "SUM_GATE"), True)}
    seam = {**gated, "SCALE": True, "SUM_P": True}
    tables = {**seam, **dict.fromkeys(("GATE_TABLE", "SCALE_TABLE", "WEIGHT", "BIAS", "WEIGHTED"), True)}
    token = {**tables, "NORM": 2, "TO_GATE": True, "TO_SCALE": True, "SUM_GATE": False}
    forms = {
        "layer backward": {**plain, "SCALE": True, "TO_X": True, "SUM_P": True},
        "seam backward": seam,
        "tables backward": tables,
        "rms per token backward": token,
        "gate backward": {**gated, "NORM": 0, "NORMED": False},
        # of long rows, and of those whose columns lie apart
        "backward, long": {**tables, "LONG": True},
        "rms backward, long": {**token, "LONG": True},
    }
    for name, constants in forms.items():
        if not constants["LONG"]:
            constants |= packed
        yield Variant(f"norms {name}", "norms_vjp", norms_vjp.norm_vjp_kernel, dtype, norms_vjp.POINTERS, constants)


def loss_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Three forms of four vectors, the multiplicative residual and its gradient; long samples, strided short ones."""
    kinds = {"table": "*fp64", "sums": "*fp64"}
    vectors = ("u0", "u1", "u2", "u3"), ("s", "x", "data", "out")
    block = configuration("losses", dtype).block
    long, short = {"STEPS": losses.STEPS, "BM": 1}, {"STEPS": 1, "BM": 32, "BLOCK": block // 32}
    for dims, where, shape in ((1, "long", long), (4, "strided", short)):
        constants = {**shape, "DIMS": dims, "K": 4, "R": 3}
        yield Variant(f"losses forms {where}", "losses", losses.forms_kernel, dtype, vectors[0], constants, kinds)
        for gradient in (False, True):
            constants = {**shape, "DIMS": dims, "MULTIPLIED": True, "GRADIENT": gradient}
            name = f"losses lognormal {'gradient ' if gradient else ''}{where}"
            yield Variant(name, "losses", losses.lognormal_kernel, dtype, vectors[1], constants, kinds)


def random_variants(dtype: torch.dtype) -> Iterator[Variant]:
    """The fills, and the sum of normals; bits and signs are made of float32's words."""
    wide = dtype is torch.float64
    integers = ("seed_at", "step_at", "ids", "nodes")
    scalars = ("seed", "counter1", "first_id", "shift", "first_block", "batch_stride", "blocks", "n")
    kinds = {a: "*i64" for a in integers} | {a: "i64" for a in scalars}
    names = ("bits", "uniform", "normal", "gumbel", "exponential", "rademacher")
    for kind, name in enumerate((*names, "normal sum")):
        if wide and name in ("bits", "rademacher"):
            continue
        summed = name == "normal sum"
        constants = {"KIND": 2 if summed else kind, "WIDE": wide, "DIMS": 1, "SUM": summed}
        constants |= {"SEED": True, "STEP": True, "IDS": True}
        output = {"out": "*i64"} if name == "bits" else {}
        pointers = ("out", "coefficients")
        yield Variant(f"random {name}", "random", random.random_kernel, dtype, pointers, constants, kinds | output)
