"""The elementary functions of csrc/math keep their stated ulp on every instruction set, in vector code."""

import decimal
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from cpp import programs as build

ISAS = list(build.FLAGS)
# Worst ulp as stated in csrc/math/elementary.h; without hardware fma the sine and cosine have their own figure.
WORST = {
    "float": {"exp": 0.9, "expm1": 1.0, "log": 0.9, "log1p": 0.9, "log_normal": 0.9, "sin_2pi": 1.0, "cos_2pi": 1.0},
    "double": {"exp": 0.9, "expm1": 1.1, "log": 0.9, "log1p": 0.9, "log_normal": 0.9, "sin_2pi": 1.0, "cos_2pi": 1.0},
}
WORST_WITHOUT_FMA = {"sin_2pi": 1.7, "cos_2pi": 1.7}


def require(isa: str) -> None:
    reason = build.why_not(isa)
    if reason:
        pytest.skip(reason)


def scan(isa: str, kind: str, function: str, *arguments: int) -> tuple[float, float, int, int]:
    worst, where, compared, wrong = build.run("elementary_scan", kind, function, *map(str, arguments), isa=isa).split()
    return float(worst), float(where), int(compared), int(wrong)


def bound(isa: str, kind: str, function: str) -> float:
    hardware_fma = isa != "baseline"
    return WORST[kind][function] if hardware_fma else WORST_WITHOUT_FMA.get(function, WORST[kind][function])


def check(isa: str, kind: str, function: str, *arguments: int) -> int:
    worst, where, compared, wrong = scan(isa, kind, function, *arguments)
    assert wrong == 0, f"{wrong} wrong special values"
    assert worst <= bound(isa, kind, function), f"{worst} ulp at {where!r}"
    return compared


@pytest.mark.parametrize("function", WORST["float"])
@pytest.mark.parametrize("isa", ISAS)
def test_float_ulp(isa: str, function: str) -> None:
    require(isa)
    assert check(isa, "float", function, 257, 13) > 8_000_000


@pytest.mark.parametrize("function", WORST["double"])
@pytest.mark.parametrize("isa", ISAS)
def test_double_ulp(isa: str, function: str) -> None:
    require(isa)
    assert check(isa, "double", function, 600_000) > 350_000


@pytest.mark.slow
@pytest.mark.parametrize("function", WORST["float"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_float(isa: str, function: str) -> None:
    require(isa)
    if isa == "avx2" and build.why_not("avx512") is None:
        pytest.skip("the same operations as avx512, which is scanned")
    build.program("elementary_scan", isa)
    parts = os.cpu_count() or 1
    with ThreadPoolExecutor(parts) as pool:
        compared = sum(pool.map(lambda part: check(isa, "float", function, parts, part), range(parts)))
    assert compared > 2**31 - 2**25


@pytest.mark.parametrize(("kind", "bits", "digits"), [("double", 90, 60), ("float", 42, 40)])
@pytest.mark.parametrize("isa", ISAS)
def test_double_word_log(isa: str, kind: str, bits: int, digits: int) -> None:
    """log_dw is relatively accurate to 2^-bits everywhere, next to its zero at 1 too."""
    require(isa)
    worst, where = decimal.Decimal(0), ""
    lines = build.run("double_word_log_points", kind, "2000", isa=isa).splitlines()
    with decimal.localcontext() as context:
        context.prec = digits + 60  # the sum of two words may span far more digits than either
        for line in lines:
            high, low, y_high, y_low = (decimal.Decimal(float.fromhex(word)) for word in line.split())
            argument = high + low
            context.prec = digits
            truth, value = argument.ln(), y_high + y_low
            context.prec = digits + 60
            if truth == 0:
                assert value == 0
                continue
            error = abs(value - truth) / abs(truth)
            if error > worst:
                worst, where = error, line
    assert worst <= decimal.Decimal(2) ** -bits, f"2^{float(worst.ln()) / 0.6931:.2f} at {where}"


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_loops_are_vector_code(isa: str) -> None:
    """Loops over the functions hold packed arithmetic only, call nothing, and the float ones touch no double."""
    require(isa)
    register = {"avx2": "%ymm", "avx512": "%zmm"}[isa]
    bodies = re.findall(r"^loop_(\w+):\n(.*?)^\s+ret", build.assembly("vector_loops", isa), re.S | re.M)
    assert len(bodies) == 14
    for name, body in bodies:
        instructions = [line.split("\t") for line in body.splitlines() if line.startswith("\t") and line[1] != "."]
        names = [parts[1] for parts in instructions]
        assert "call" not in names, name
        suffix = "pd" if name.endswith("double") else "ps"
        fused = [line for line in body.splitlines() if re.search(rf"vfn?m(add|sub)\w+{suffix}", line)]
        assert len(fused) >= 4 and all(register in line for line in fused), name
        scalar = [op for op in names if re.fullmatch(r"v(fn?m(add|sub)\d+|add|sub|mul|div)s[sd]", op)]
        assert not scalar, f"{name}: {scalar}"
        if name.endswith("float"):
            doubles = [op for op in names if re.fullmatch(r"v(fn?m(add|sub)\d+|add|sub|mul|div|cvt\w*)[ps]d", op)]
            assert not doubles, f"{name}: {doubles}"
