"""Renders README's measured table from the newest results of each machine; nothing in it is typed by hand."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def table(path: Path) -> str:
    """One machine's rows: our time, the ratio to each opponent, what was asked."""
    result = json.loads(path.read_text())
    m = result["machine"]
    lines = [
        f"{m['cpu']}, {m['cpu_isa']}, 1 thread, torch {m['torch']}, {result['date'][:10]} "
        f"(`{path.relative_to(ROOT)}`); "
        "ratios are the opponent's time over fokker's, interleaved in one process.",
        "",
        "| what | us | opponent / fokker | asked |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        ours = 1e6 * next(iter(row["seconds"].values()))
        ratios = "; ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratio"].items())
        asked = "; ".join(f"{want:.2f}{'' if row['met'][n] else ' (missed)'}" for n, want in row["asked"].items())
        lines.append(f"| {row['name']} | {ours:.1f} | {ratios} | {asked} |")
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
