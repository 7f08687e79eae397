"""Example of `fokker.systems.absorbing`: the characters of fokker's own docstrings."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import sde
from ..systems import absorbing
from .systems_fit import fit, network


def _text() -> str:
    """The docstrings of this package, in lower case: letters and a few signs."""
    parts = []
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
                parts.append(ast.get_docstring(node) or "")
    kept = set("abcdefghijklmnopqrstuvwxyz ,.:()")
    return " ".join("".join(c if c in kept else " " for c in " ".join(parts).lower()).split())


class _Network(torch.nn.Module):
    """Logits (B, L, size) of tokens (B, L): residual convolutions, no time among the arguments."""

    def __init__(self, size: int, width: int = 96) -> None:
        super().__init__()
        self.token, self.head = torch.nn.Embedding(size + 1, width), torch.nn.Linear(width, size)
        self.body = torch.nn.ModuleList(torch.nn.Conv1d(width, width, 7, padding=3) for _ in range(4))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x)
        for norm, layer in zip(self.norms, self.body, strict=True):
            h = h + torch.nn.functional.silu(layer(norm(h).transpose(1, 2)).transpose(1, 2))
        return self.head(h)


def example(out: Path, seed: int = 0, steps: int = 400, length: int = 48) -> dict[str, Any]:
    """Training by `absorbing.lambda_dce`; bits a character, samples, and calls beside those expected."""
    text = _text()
    letters = sorted(set(text))
    corpus = torch.tensor([letters.index(c) for c in text])
    mask, held = len(letters), len(corpus) // 10
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int, low: int, high: int) -> Tensor:
        at = torch.randint(low, high - length, (count, 1), generator=generator)
        return corpus[at + torch.arange(length)]

    net = network(seed, lambda: _Network(mask))
    fit(
        net, lambda k: absorbing.lambda_dce(net, rows(32, held, len(corpus)), mask, seed=seed, step=k).mean() / length,
        steps, 4e-3, "characters",
    )  # fmt: skip
    with torch.no_grad():
        bound = absorbing.lambda_dce(net, rows(1024, 0, held), mask, seed=seed + 1).mean() / length / math.log(2)
    share = torch.bincount(corpus).double() / len(corpus)
    single = -(share * share.log2()).sum()
    print(f"{len(corpus)} characters of {mask} kinds, {float(single):.2f} bits each; held-out bound {float(bound):.2f}")
    process = sde.Absorbing(mask)
    for n in (16, 64, 256):
        run = absorbing.sample(net, process, (1, length), n, seed, full=True)
        found = "".join(letters[i] for i in run.x[0].tolist())
        print(
            f"{n:4d} steps, {run.calls:2d} calls ({absorbing.expected_calls(length, process, n):.1f} expected): {found}"
        )
    start = torch.full((1, length), mask)
    prompt = "the score of "
    start[0, : len(prompt)] = torch.tensor([letters.index(c) for c in prompt])
    found = absorbing.sample_any_order(net, mask, start.shape, seed, start=start)[0].tolist()
    print(f"any order, after {prompt!r}: {''.join(letters[i] for i in found)}")
    return {}
