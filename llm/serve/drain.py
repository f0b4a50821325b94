"""How a server stops: no new requests, running ones may end, and after the grace time they are ended.

BentoML's supervisor passes SIGTERM on to the worker and waits for it, a day if need be. In the worker uvicorn would
close the port at once and then wait for ever. So the first SIGTERM is kept here: the port stays open, those who ask
are told (503), and uvicorn gets the signal when the last answer has ended. A worker whose supervisor has died stops in
the same way. A worker that hangs all the same is ended after `EXIT_S` more.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

LAST_EVENT_S = 2.0  # for a client to take the last event of an answer that was cut short
EXIT_S = 15.0


class Drain:
    """The requests in flight, and whether there may be new ones."""

    def __init__(self, grace_s: float):
        self.grace_s, self.active = grace_s, False
        self._deadlines: set[asyncio.Timeout] = set()
        self._num_running = 0
        self._idle = asyncio.Event()

    @contextmanager
    def count(self) -> Iterator[None]:
        """A request in flight, the last event of its answer included."""
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    @contextmanager
    def watch(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """A request that the end of the grace time may interrupt."""
        self._deadlines.add(deadline)
        try:
            yield
        finally:
            self._deadlines.discard(deadline)

    async def run(self) -> None:
        """Return when no request is left; those that take longer than `grace_s` are interrupted."""
        self.active = True
        await self._wait_until_idle(self.grace_s)
        now = asyncio.get_running_loop().time()
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(now)
        await self._wait_until_idle(2 * LAST_EVENT_S)

    async def _wait_until_idle(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._num_running:
                    self._idle.clear()
                    await self._idle.wait()


def stop_by_drain(drain: Drain, loop: asyncio.AbstractEventLoop) -> None:
    """Let SIGTERM drain the server before it reaches the handler that is set now; the death of the parent sends one."""
    tasks: set[asyncio.Task[None]] = set()

    async def finish() -> None:
        await drain.run()
        signal.signal(signal.SIGTERM, passed_on)
        signal.raise_signal(signal.SIGTERM)

    def begin(number: int, frame: FrameType | None) -> None:
        if not tasks:
            _exit_after(drain.grace_s + EXIT_S)
            tasks.add(loop.create_task(finish()))

    passed_on = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: loop.call_soon_threadsafe(begin, number, frame))
    threading.Thread(target=_stop_with_parent, args=(os.getppid(),), name="parent", daemon=True).start()


def _exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def _stop_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
