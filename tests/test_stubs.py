"""The type stubs of the native modules say what the built modules have: the same functions, parameters and types."""

import ast
import importlib
from pathlib import Path

import pytest

import fokker

PAIRS = (("_cpu", "_cpu.pyi"), ("_cuda", "_cuda.pyi"), ("_emu", "_cuda.pyi"))
ONLY_EMULATED = {"set_order"}


def parameters(source: str) -> dict[str, list[tuple[str, str]]]:
    """Function -> (parameter, type) in order, and the result's type last."""
    out = {}
    for kind in ("Int", "Float"):
        source = source.replace(f"typing.Supports{kind} | typing.SupportsIndex", kind.lower())
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            arguments = [(a.arg, ast.unparse(a.annotation)) for a in node.args.args]
            out[node.name] = [*arguments, ("return", ast.unparse(node.returns))]
    return out


@pytest.mark.parametrize(("module", "file"), PAIRS, ids=[m for m, _ in PAIRS])
def test_stub_and_module_agree(module, file):
    try:
        built = importlib.import_module(f"fokker.{module}")
    except ImportError:
        pytest.skip(f"{module} is not built")
    written = parameters((Path(fokker.__file__).parent / file).read_text())
    signatures = [
        f"def {value.__doc__.splitlines()[0]}: ..."
        for name, value in vars(built).items()
        if not name.startswith("__") and callable(value) and name not in ONLY_EMULATED
    ]
    assert written == parameters("\n".join(signatures)), "run python tools/native_stubs.py"
    assert len(written) >= 10
