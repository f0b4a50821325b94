"""How many tokens of a stream are sent at a time."""

import time
from collections.abc import Callable

from llm.serve.backend import Event

HOLD_S = 0.04  # after it tokens are due, however few they are: 25 updates a second look like a flow


class Pacer:
    """Keeps events back until a stream has `interval` tokens; then all that is kept is due, whatever its stream.

    To send something takes longer than its bytes let expect: a step leaves nothing of the server's code in the
    processor's caches. The first event of a request is due at once, and so is its last. Not safe for threads.
    """

    def __init__(self, interval: int, clock: Callable[[], float] = time.monotonic):
        self._interval, self._clock = interval, clock
        self._held: dict[int, Event] = {}
        self._begun: set[int] = set()
        self._due, self._taken_s = False, 0.0

    def put(self, events: list[tuple[int, Event]]) -> None:
        """Keep the new events of some requests."""
        for number, event in events:
            held = self._held.get(number)
            event = event if held is None else held.then(event)
            self._held[number] = event
            self._due |= number not in self._begun or event.finish is not None or len(event.tokens) >= self._interval
            self._begun.add(number)

    def take(self, everything: bool = False) -> list[tuple[int, Event]]:
        """Return what is due, one event for each request, or all that is kept."""
        now = self._clock()
        if not (everything or self._due or now >= self._taken_s + HOLD_S):
            return []
        events, self._held = list(self._held.items()), {}
        self._begun.difference_update(number for number, event in events if event.finish is not None)
        self._due, self._taken_s = False, now
        return events

    def drop(self, number: int) -> None:
        """Forget a request."""
        self._held.pop(number, None)
        self._begun.discard(number)
