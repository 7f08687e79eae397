"""Progress of long work: tqdm where it is installed, else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items`` and show how far it is, on standard error."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        step = max(1, (total or 100) // 10)
        for i, item in enumerate(items):
            if i % step == 0 and sys.stderr.isatty():
                print(f"{label}: {i}/{total if total is not None else '?'}", file=sys.stderr)
            yield item
        return
    yield from tqdm(items, desc=label, total=total, leave=False, disable=not sys.stderr.isatty())
