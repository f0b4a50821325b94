"""SIGTERM and Ctrl-C end a run between two steps, after a checkpoint, instead of in the middle of one."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Stop:
    """True once a signal has come."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def exception(self) -> BaseException:
        """Return what the signal would have raised at once."""
        return KeyboardInterrupt() if self.signal == signal.SIGINT else SystemExit(128 + int(self.signal or 0))


@contextmanager
def listen_for_stop() -> Iterator[Stop]:
    """Note the first SIGTERM or SIGINT; a second one has its usual effect at once.

    Signals reach the main thread of a process only: elsewhere (a Ray worker's thread) nothing is changed.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        log.info("%s: stopping after this step", signal.Signals(number).name)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield stop
    finally:
        for each, previous in before.items():
            signal.signal(each, previous)
