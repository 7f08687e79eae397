"""The CUDA module's machine code: within its resource budget, and no double arithmetic in float kernels."""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "kernel_resources.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    if not TOOL.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location("kernel_resources", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tool: ModuleType) -> str:
    path = tool.find_module()
    if path is None:
        pytest.skip("fokker._cuda is not built")
    if tool.find_tool("cuobjdump") is None:
        pytest.skip("no cuobjdump (install the CUDA toolkit or the triton wheel)")
    return path


def test_within_budget(tool: ModuleType, built: str) -> None:
    """No kernel takes more than tests/resources.json allows, and none is missing."""
    problems = tool.compare(tool.usage(built), tool.read_budget())
    assert not problems, "\n".join(problems) + "\n(tools/kernel_resources.py --update rewrites the budget)"


def test_no_spills(tool: ModuleType, built: str) -> None:
    """Nothing lives in local memory but the five quadrature nodes of the double-precision divergence."""
    allowed = {"vmf_bregman_kernel<double>": 64}
    for arch, kernels in tool.usage(built).items():
        for name, row in kernels.items():
            # the stack of other architectures is a few bytes here and there, and has no budget
            most = allowed.get(name, 0) if arch == "sm_90" else 64
            assert row["local"] == 0 and row["stack"] <= most, f"{arch} {name}: {row}"


def is_double(opcode: str) -> bool:
    """Whether a SASS instruction computes in, or converts to or from, double precision."""
    parts = opcode.split(".")
    if parts[0] in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "DMMA"):
        return True
    return "F64" in parts[1:] or (parts[0] == "MUFU" and parts[1].endswith("64H"))


def test_float_kernels_have_no_double_instruction(tool: ModuleType, built: str) -> None:
    """SASS of every float instantiation of the elementwise kernels; the double ones show that the scan sees them."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    for mangled, opcode in tool.instructions(built):
        total[mangled] += 1
        if is_double(opcode):
            counts[mangled][opcode] += 1
    names = tool.demangle(sorted(total))
    families = ("bessel_kernel<", "vmf_scalar_kernel<", "vmf_bregman_kernel<", "row_logsumexp")
    elementwise = {m: n for m, n in names.items() if n.startswith(families)}
    floats = {m: n for m, n in elementwise.items() if "float" in n}
    doubles = {m: n for m, n in elementwise.items() if "double" in n}
    assert len(floats) == len(doubles) >= 30
    assert all(total[m] > 20 for m in floats)
    guilty = {n: dict(counts[m]) for m, n in floats.items() if counts[m]}
    assert not guilty, f"double instructions in float kernels: {guilty}"
    blind = [n for m, n in doubles.items() if not counts[m]]
    assert not blind, f"no double instruction seen in {blind}"


def test_compare_reports_each_kind_of_problem(tool: ModuleType) -> None:
    """The comparison itself: too many registers, a new kernel, a missing kernel, a foreign architecture."""
    row = {"registers": 40, "stack": 0, "shared": 0, "local": 0}
    budget = {"sm_90": {"f<float>": row, "g<float>": row}}
    assert tool.compare({"sm_90": {"f<float>": row, "g<float>": row}}, budget) == []
    more = {"sm_90": {"f<float>": {**row, "registers": 41}, "g<float>": row}}
    assert tool.compare(more, budget) == ["sm_90 f<float>: 41 registers, budget 40"]
    assert "not in the budget" in tool.compare({"sm_90": {**budget["sm_90"], "h": row}}, budget)[0]
    assert "not in the module" in tool.compare({"sm_90": {"f<float>": row}}, budget)[0]
    assert "no architecture in common" in tool.compare({"sm_70": {"f<float>": row}}, budget)[0]


def test_short_names(tool: ModuleType) -> None:
    """Kernel names as the budget spells them."""
    long = "void fokker::cuda::(anonymous namespace)::row_logsumexp_warp<float, (int)4>(float*, float const*, long)"
    assert tool.short_name(long) == "row_logsumexp_warp<float, 4>"
    enums = "(fokker::math::Fn)0, 1, (fokker::cuda::bessel_detail::Want)1"
    long = f"void fokker::cuda::bessel_detail::bessel_kernel<{enums}, double>(fokker::Elementwise)"
    assert tool.short_name(long) == "bessel_kernel<0, 1, 1, double>"
    assert not is_double("FFMA") and is_double("DFMA") and is_double("F2F.F64.F32") and is_double("MUFU.RCP64H")
