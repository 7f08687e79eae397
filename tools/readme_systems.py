"""Renders README's table of systems from the modules' own words; nothing in it is typed by hand."""

import re
from pathlib import Path

from fokker._cli.systems import markdown


def main() -> None:
    """Rewrite the part of README between the markers."""
    readme = Path(__file__).resolve().parent.parent / "README.md"
    body = re.sub(
        r"(<!-- systems:.*?-->\n).*?(<!-- end of systems -->)",
        lambda m: m[1] + markdown() + "\n" + m[2],
        readme.read_text(),
        flags=re.S,
    )
    readme.write_text(body)


if __name__ == "__main__":
    main()
