"""``python -m fokker bench``: ours beside its opponents, interleaved in one process, with rooflines and pictures."""

from __future__ import annotations

import argparse
import base64
import ctypes
import datetime
import html
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from .. import _native
from .benches import Bench, benches
from .info import machine
from .progress import progress


def _loops(run: Any, target: float) -> int:
    run()
    start = time.perf_counter()
    run()
    once = max(time.perf_counter() - start, 1e-7)
    return max(1, min(1000, int(target / once)))


def measure(bench: Bench, rounds: int, target: float) -> dict[str, Any]:
    """Seconds a run of each contender (median over interleaved rounds), and the median ratio to ours."""
    loops = {name: _loops(run, target) for name, run in bench.contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in bench.contenders}
    for _ in range(rounds):
        for name, run in bench.contenders.items():
            start = time.perf_counter()
            for _ in range(loops[name]):
                run()
            times[name].append((time.perf_counter() - start) / loops[name])
    ours = next(iter(bench.contenders))
    seconds = {name: statistics.median(t) for name, t in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(t, times[ours], strict=True))
        for name, t in times.items()
        if name != ours
    }
    return {
        "name": bench.name,
        "family": bench.family,
        "seconds": seconds,
        "ratio": ratios,
        "asked": bench.asked,
        "met": {name: ratios[name] >= want for name, want in bench.asked.items() if name in ratios},
        "elements": bench.elements,
        "bytes": bench.bytes,
        "flops": bench.flops,
        "exps": bench.exps,
        "wide": bench.wide,
        "note": bench.note,
    }


def keep_pages() -> bool:
    """Have glibc keep the blocks of up to 32 MB that are freed, for all contenders alike; whether it could be asked.

    By itself it gives the end of the heap back where more lies there than twice the largest block it ever unmapped:
    whether a contender's results cost page faults then hangs on what ran before it, and on how its last two happen to
    lie (ours forward and backward of a layer's 18.9 MB: 4.5 ms with them, 2.6 without; compiled 8.3 and 5.6).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_threshold, 32 << 20))


def limits() -> dict[str, float]:
    """What a core can do, measured now: bytes copied a second (read and written), operations of a product; our own
    exponentials and multiply-adds (two operations each) out of registers."""
    a = torch.rand(1 << 24)
    b = torch.empty_like(a)
    m = torch.rand(1024, 1024)
    best_copy = best_product = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        b.copy_(a)
        best_copy = min(best_copy, time.perf_counter() - start)
        start = time.perf_counter()
        m @ m
        best_product = min(best_product, time.perf_counter() - start)
    found = {"copy_bytes_per_s": 2 * a.nbytes / best_copy, "product_flops_per_s": 2 * 1024.0**3 / best_product}
    for wide in (False, True):
        for exponentials, name, n in ((True, "exps", 1 << 22), (False, "fma_flops", 1 << 25)):
            best = float("inf")
            for _ in range(8):
                start = time.perf_counter()
                _native.cpu.spin(exponentials, wide, n)
                best = min(best, time.perf_counter() - start)
            found[f"{name}_per_s_float{64 if wide else 32}"] = (1 if exponentials else 2) * n / best
    return found


def roofline(row: dict[str, Any], limit: dict[str, float]) -> float | None:
    """The share of the bound that ours reaches: bytes over the copy rate, operations over the product rate, or, where
    there are exponentials, those and the operations one after the other (they share the units)."""
    floor = max(row["bytes"] / limit["copy_bytes_per_s"], row["flops"] / limit["product_flops_per_s"])
    if row["exps"]:
        kind = f"per_s_float{64 if row['wide'] else 32}"
        floor = row["exps"] / limit[f"exps_{kind}"] + row["flops"] / limit[f"fma_flops_{kind}"]
    ours = next(iter(row["seconds"].values()))
    return floor / ours if floor > 0 else None


def _describe(row: dict[str, Any]) -> str:
    ours = next(iter(row["seconds"].values()))
    rate = f"{row['elements'] / ours / 1e6:9.1f} M/s" if row["elements"] else ""
    parts = []
    for name, ratio in row["ratio"].items():
        want = row["asked"].get(name)
        judged = "" if want is None else f" (asked {want:.2f}{'' if row['met'][name] else ', MISSED'})"
        parts.append(f"{name} {ratio:.2f}x{judged}")
    bound = f"  {100 * row['roofline']:.0f}% of roofline" if row.get("roofline") else ""
    return f"{row['name']:52s} {1e6 * ours:10.1f} us {rate}  {'; '.join(parts)}{bound}"


def draw(rows: list[dict[str, Any]], facts: dict[str, Any], folder: Path) -> list[Path]:
    """Bars of the time ratio with what was asked; one picture a family and opponent."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("plots need matplotlib: pip install fokker[bench]") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    families: dict[str, list[tuple[str, float, float | None]]] = {}
    for row in rows:
        for name, ratio in row["ratio"].items():
            title = f"{row['family']} against {name}"
            families.setdefault(title, []).append((row["name"], ratio, row["asked"].get(name)))
    paths = []
    for title, bars in families.items():
        figure, axes = plt.subplots(figsize=(9, 0.8 + 0.32 * len(bars)), layout="constrained")
        at = range(len(bars))
        good = ["#2f7d5b" if want is None or ratio >= want else "#c0504d" for _, ratio, want in bars]
        axes.barh(at, [ratio for _, ratio, _ in bars], color=good, height=0.7)
        for i, (_, ratio, want) in enumerate(bars):
            axes.text(ratio, i, f" {ratio:.2f}", va="center", fontsize=8)
            if want is not None:
                axes.plot([want, want], [i - 0.45, i + 0.45], color="black", lw=1.5)
        axes.set_yticks(at, [name for name, _, _ in bars], fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("time of the opponent / time of fokker (black mark: asked for)")
        axes.set_title(f"{title}\n{facts['cpu']}, {facts['cpu_isa']}, {facts['threads']} thread(s)", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".png")
        figure.savefig(path, dpi=110)
        plt.close(figure)
        paths.append(path)
    return paths


def encoded(picture: Path) -> str:
    """A file's bytes in base 64."""
    return base64.b64encode(picture.read_bytes()).decode()


def page(result: dict[str, Any], pictures: list[Path]) -> str:
    """One self-contained HTML page: the machine, the table, the pictures."""
    facts = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in result["machine"].items()
    )
    lines = "".join(
        f"<tr><td>{html.escape(r['name'])}</td><td>{1e6 * next(iter(r['seconds'].values())):.1f}</td>"
        f"<td>{html.escape('; '.join(f'{n} {x:.2f}x' for n, x in r['ratio'].items()))}</td>"
        f"<td>{html.escape('; '.join(f'{n} {x:.2f}x' for n, x in r['asked'].items()))}</td>"
        f"<td>{'' if r['roofline'] is None else format(r['roofline'], '.0%')}</td></tr>"
        for r in result["rows"]
    )
    images = "".join(
        f'<p><img alt="{html.escape(p.stem)}" src="data:image/png;base64,{encoded(p)}"></p>' for p in pictures
    )
    style = "body{font:14px sans-serif;max-width:70em;margin:2em auto}td,th{padding:2px 10px;text-align:left}"
    return (
        f'<!doctype html><meta charset="utf-8"><title>fokker bench</title><style>{style}</style><h1>fokker bench</h1>'
        f"<table>{facts}</table><h2>Measured</h2><table><tr><th>what</th><th>us</th><th>opponent / ours</th>"
        f"<th>asked</th><th>of roofline</th></tr>{lines}</table>{images}\n"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, write what was asked for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        kept = keep_pages()
        limit = limits()
        rounds, target = (5, 0.004) if args.quick else (15, 0.01)
        chosen = (b for b in benches() if not args.op or any(o in b.name or o == b.family for o in args.op))
        rows = []
        facts = {**machine(), "pages_kept": kept, **limit}
        print(
            f"{facts['cpu']} ({facts['cpu_isa']}), {args.threads} thread(s), torch {facts['torch']}; copy "
            f"{limit['copy_bytes_per_s'] / 1e9:.1f} GB/s, product {limit['product_flops_per_s'] / 1e9:.0f} GFLOP/s; "
            "ratios are opponent / fokker"
        )
        for bench in progress(chosen, "bench"):
            row = measure(bench, rounds, target)
            row["roofline"] = roofline(row, limit)
            rows.append(row)
            print(_describe(row), flush=True)
    finally:
        torch.set_num_threads(threads)
    if not rows:
        raise SystemExit(f"--op: no bench's name contains {' or '.join(args.op)}")
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    result = {"date": when, "machine": facts, "rows": rows}
    pictures = (
        draw(rows, facts, Path(args.plots or Path(args.html).parent / "plots")) if args.plots or args.html else []
    )
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    if args.html:
        Path(args.html).write_text(page(result, pictures))
    missed = [r["name"] for r in rows for ok in r["met"].values() if not ok]
    print(
        f"{sum(len(r['met']) for r in rows) - len(missed)} of {sum(len(r['met']) for r in rows)} targets met"
        + (f"; missed: {', '.join(missed)}" if missed else "")
    )
    return 0
