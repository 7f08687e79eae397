"""The command line: ``python -m fokker info | check | bench | demo | systems``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fokker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    info = commands.add_parser("info", help="versions, backends and why one is missing, instruction set, GPU")
    info.add_argument("--json", action="store_true", help="print JSON")

    check = commands.add_parser("check", help="hold every op on every available backend against its judge")
    check.add_argument("--op", action="append", help="only ops whose name contains this (may be given again)")
    check.add_argument("--backend", action="append", help="only this backend (may be given again)")
    check.add_argument("--dtype", action="append", help="only this dtype: float64, float32, float16, bfloat16")
    check.add_argument("--compile", action="store_true", help="also compare with the reference under torch.compile")
    check.add_argument("--json", metavar="FILE", help="write the rows as JSON ('-' for standard output)")
    check.add_argument("--no-speed", action="store_true", help="errors only")

    bench = commands.add_parser("bench", help="time ops beside their opponents, with roofline fractions and plots")
    bench.add_argument("--op", action="append", help="only benches whose name contains this (may be given again)")
    bench.add_argument("--json", metavar="FILE", help="write the measurements as JSON")
    bench.add_argument("--html", metavar="FILE", help="write a page with the table and the plots")
    bench.add_argument("--plots", metavar="FOLDER", help="write the plots as PNG")
    bench.add_argument("--threads", type=int, default=1, help="threads of torch and of fokker (default 1)")
    bench.add_argument("--quick", action="store_true", help="fewer repetitions")

    demo = commands.add_parser("demo", help="the families on real photographs and digits, with pictures")
    demo.add_argument(
        "family",
        nargs="?",
        choices=("vmf", "kde", "sde", "denoiser"),
        default="vmf",
        help="vmf: fits, mixtures and outlier scores (default); kde: denoising, memorised digits, regimes; "
        "sde: digits from noise by eight samplers; denoiser: a transformer trained with and without fused layers",
    )
    demo.add_argument("--out", metavar="FOLDER", default="fokker-demo", help="where the pictures go")
    demo.add_argument("--seed", type=int, default=0)

    systems = commands.add_parser("systems", help="the published methods with their papers; NAME runs an example")
    systems.add_argument("name", nargs="?", help="run this system's example on real data")
    systems.add_argument("--out", metavar="FOLDER", default="fokker-systems", help="where the pictures go")
    systems.add_argument("--seed", type=int, default=0)
    systems.add_argument("--markdown", action="store_true", help="print the table that README has")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.command == "info":
        from ._cli.info import run
    elif args.command == "check":
        from ._cli.check import run
    elif args.command == "bench":
        from ._cli.bench import run
    elif args.command == "systems":
        from ._cli.systems import run
    else:
        from ._cli.demo import run
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
