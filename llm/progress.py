"""Progress of a loop: a rich bar on a terminal, a log line every few seconds otherwise."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

INTERVAL_S = 5.0


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from the iterable and show how far it is; the total is its length where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        console = Console(stderr=True)
        yield from rich_track(iterable, description, total=total, console=console, transient=True)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now - shown >= INTERVAL_S:
            shown = now
            log.info("%s %s | %.0f s", description, f"{done}/{total}" if total else done, now - started)
        yield item
