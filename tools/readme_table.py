"""Renders README's measured table from the newest results of each machine; nothing in it is typed by hand."""

import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: what rows are also timed beside, that nobody would use instead
YARDSTICKS = re.compile("fokker|forward|copy|its |AVX|reference|torch.add|torch sum|torch.randn")


def summary(families: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row a family: the median and the range of the ratios to each opponent, and the targets met."""
    lines = ["", "| family | opponent / fokker: median (least to most) | targets met |", "|---|---|---|"]
    for family, rows in families.items():
        ratios: dict[str, list[float]] = {}
        for name, ratio in ((n, r) for row in rows for n, r in row["ratio"].items() if not YARDSTICKS.match(n)):
            ratios.setdefault(name.partition(",")[0], []).append(ratio)
        parts = [f"{n} {statistics.median(r):.1f} ({min(r):.1f} to {max(r):.1f})" for n, r in ratios.items()]
        met = [ok for row in rows for ok in row["met"].values()]
        if parts:
            lines.append(f"| {family} | {', '.join(parts)} | {f'{sum(met)} of {len(met)}' if met else ''} |")
    return lines


def table(path: Path) -> str:
    """One machine's rows, family by family: our time, the ratio to each opponent, what was asked, the roofline."""
    result = json.loads(path.read_text())
    m = result["machine"]
    copy = m["copy_bytes_per_s"] / 1e9
    lines = [
        f"{m['cpu']}, {m['cpu_isa']}, 1 thread where not said, torch {m['torch']}, {result['date'][:10]} "
        f"(`{path.relative_to(ROOT)}`). Ratios are the opponent's time over fokker's, interleaved in one process"
        f"{', where glibc keeps freed pages for all of them' if m.get('pages_kept') else ''}; the "
        f"last column is the share reached of the bound by the bytes moved (at the {copy:.0f} GB/s of `copy_` outside "
        "the caches in the same run: more than 100 % is work in the caches), by products, or by exponentials and "
        "multiply-adds.",
    ]
    families = {f: list(r) for f, r in itertools.groupby(result["rows"], key=lambda row: row["family"])}
    lines += summary(families)
    for family, rows in families.items():
        met = [ok for row in rows for ok in row["met"].values()]
        count = f", {sum(met)} of {len(met)} targets met" if met else ""
        lines += [
            "", f"<details><summary>{family}: {len(rows)} rows{count}</summary>", "",
            "| what | us | opponent / fokker | asked | of the bound |", "|---|---|---|---|---|",
        ]  # fmt: skip
        for row in rows:
            ours = 1e6 * next(iter(row["seconds"].values()))
            ratios = "; ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratio"].items())
            asked = "; ".join(f"{want:.2f}{'' if row['met'][n] else ' (missed)'}" for n, want in row["asked"].items())
            bound = f"{row['roofline']:.0%}" if row.get("roofline") else ""
            lines.append(f"| {row['name']} | {ours:.1f} | {ratios} | {asked} | {bound} |")
        lines += ["", "</details>"]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the part of README between the markers."""
    folders = sorted(p for p in (ROOT / "bench" / "results").iterdir() if p.is_dir())
    text = "\n\n".join(table(sorted(f.glob("*.json"))[-1]) for f in folders if list(f.glob("*.json")))
    readme = ROOT / "README.md"
    body = re.sub(
        r"(<!-- measured:.*?-->\n).*?(<!-- end -->)",
        lambda m: m[1] + text + "\n" + m[2],
        readme.read_text(),
        flags=re.S,
    )
    readme.write_text(body)


if __name__ == "__main__":
    main()
