"""The registry of systems and README's table of them."""

import re
from pathlib import Path

import pytest

from fokker.__main__ import main
from fokker._cli import systems

README = Path(__file__).resolve().parent.parent / "README.md"


def test_readme_has_the_registry():
    """`python tools/readme_systems.py` writes it."""
    table = re.search(r"<!-- systems:.*?-->\n(.*?)\n<!-- end of systems -->", README.read_text(), re.S)[1]
    assert table == systems.markdown()


def test_every_system_is_listed(capsys):
    assert main(["systems"]) == 0
    text = capsys.readouterr().out
    for entry in systems.registry():
        assert entry.title in text and entry.paper in text and entry.example in text
    assert len(systems.registry()) >= 3


def test_examples_belong_to_systems():
    folder = Path(systems.__file__).parent
    names = {e.name for e in systems.registry()}
    for path in folder.glob("system_*.py"):
        assert path.stem.removeprefix("system_") in names
        assert callable(systems.example(path.stem.removeprefix("system_")).example)


def test_unknown_names_are_named():
    with pytest.raises(SystemExit, match="no system 'nothing'; there are"):
        main(["systems", "nothing"])
    with pytest.raises(SystemExit, match="kde_regimes has no example to run"):
        main(["systems", "kde_regimes"])
