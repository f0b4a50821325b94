"""What a key has used, and whether it may go on: requests and tokens per minute, parallel requests, a daily budget.

Tokens are known when an answer ends, so a key is refused once it has used its tokens, and its last answers may go over
the limit: at most `parallel` of them. Requests never do.
"""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llm.serve.params import KeyLimits
from llm.serve.store import hold_lock, write_private

log = logging.getLogger(__name__)

SLOTS_PER_S = 8  # a power of two: times of slots are exact in floating point
WINDOW_SLOTS = 60 * SLOTS_PER_S
SAVE_S = 5.0  # a kill loses at most the charges since the last save


class LimitReached(Exception):
    """The key has used what it may; `retry_after_s` says when it may go on."""

    def __init__(self, message: str, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Window:
    """The sum of what was added in the last minute, at any moment.

    Amounts of one slot are kept together, as if they had all come at its end: so memory is bounded, and none is
    forgotten before its minute is over.
    """

    def __init__(self) -> None:
        self.total = 0
        self._slots: deque[list[int]] = deque()  # [number of the slot's end, amount]

    def add(self, amount: int, now: float) -> None:
        """Count an amount; `now` [s] never goes back."""
        slot = math.ceil(now * SLOTS_PER_S)
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1] += amount
        else:
            self._slots.append([slot, amount])
        self.total += amount

    def forget(self, now: float) -> None:
        """Drop what is a minute old."""
        while self._slots and self._slots[0][0] + WINDOW_SLOTS <= now * SLOTS_PER_S:
            self.total -= self._slots.popleft()[1]

    def wait_s(self, limit: int, now: float) -> float:
        """Return the seconds until the total is below the limit; 0.0 when it is."""
        left, wait = self.total, 0.0
        for slot, amount in self._slots:
            if left < limit:
                break
            left -= amount
            wait = (slot + WINDOW_SLOTS) / SLOTS_PER_S - now
        return wait

    def reset_s(self, now: float) -> float:
        """Return the seconds until the total is 0."""
        return self.wait_s(1, now)


class Budget:
    """Tokens per key in the UTC day; kept on disk, so that a restart gives nothing back.

    Several servers may share the file: each adds what is new, and learns at a save what the others have added.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._path, self._now = path, now
        self._day = ""
        self._saved: dict[str, int] = {}
        self._new: dict[str, int] = {}
        self._due = now()

    def used(self, key_id: str) -> int:
        """Return the tokens of the key's day."""
        self._begin_day()
        return self._saved.get(key_id, 0) + self._new.get(key_id, 0)

    def left_of_day_s(self) -> float:
        """Return the seconds until midnight UTC."""
        now = self._now()
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (midnight - now).total_seconds()

    def charge(self, key_id: str, tokens: int) -> None:
        """Count tokens, and save them when the last save is `SAVE_S` ago."""
        self._begin_day()
        self._new[key_id] = self._new.get(key_id, 0) + tokens
        if self._now() >= self._due:
            self.save()

    def save(self) -> None:
        """Add what is new to the file; what cannot be written stays in memory, and the log says so."""
        self._due = self._now() + timedelta(seconds=SAVE_S)
        try:
            with hold_lock(self._path):
                total = self._read()
                for key_id, tokens in self._new.items():
                    total[key_id] = total.get(key_id, 0) + tokens
                write_private(self._path, json.dumps({"day": self._day, "tokens": total}), sync=False)
            self._saved, self._new = total, {}
        except OSError as error:
            log.error("%s: the daily budgets are not saved: %s", self._path, error)

    def _begin_day(self) -> None:
        today = self._now().date().isoformat()
        if today != self._day:
            self._day, self._new = today, {}
            self._saved = self._read()

    def _read(self) -> dict[str, int]:
        try:
            content = json.loads(self._path.read_text(encoding="utf8"))
            return dict(content["tokens"]) if content["day"] == self._day else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s: the daily budgets begin at 0: %r", self._path, error)
            return {}


@dataclass
class _Usage:
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    running: int = 0


class Limiter:
    """The usage of every key; called from one thread."""

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic):
        self._budget, self._clock = budget, clock
        self._usages: dict[str, _Usage] = {}

    def begin(self, key_id: str, limits: KeyLimits) -> None:
        """Count a request that begins; each needs an `end`. Raises LimitReached, and then counts nothing."""
        usage, now = self._usage(key_id)
        if usage.running >= limits.parallel:
            raise LimitReached(f"{limits.parallel} requests of this key are running already", 1.0)
        if wait := usage.requests.wait_s(limits.requests_per_minute, now):
            raise LimitReached(f"the key's {limits.requests_per_minute} requests of this minute are used", wait)
        if wait := usage.tokens.wait_s(limits.tokens_per_minute, now):
            raise LimitReached(f"the key's {limits.tokens_per_minute} tokens of this minute are used", wait)
        if self._budget.used(key_id) >= limits.tokens_per_day:
            message = f"the key's {limits.tokens_per_day} tokens of this UTC day are used"
            raise LimitReached(message, self._budget.left_of_day_s())
        usage.requests.add(1, now)
        usage.running += 1

    def end(self, key_id: str) -> None:
        """A request that began has ended."""
        self._usages[key_id].running -= 1

    def charge(self, key_id: str, tokens: int) -> None:
        """Count the tokens of an answer that has ended."""
        usage, now = self._usage(key_id)
        usage.tokens.add(tokens, now)
        self._budget.charge(key_id, tokens)

    def describe(self, key_id: str, limits: KeyLimits) -> dict[str, str]:
        """Return OpenAI's rate limit headers."""
        usage, now = self._usage(key_id)
        headers = {}
        for name, window, limit in (
            ("requests", usage.requests, limits.requests_per_minute),
            ("tokens", usage.tokens, limits.tokens_per_minute),
        ):
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - window.total))
            headers[f"x-ratelimit-reset-{name}"] = f"{window.reset_s(now):.3f}s"
        return headers

    def save(self) -> None:
        """Write the daily budgets."""
        self._budget.save()

    def _usage(self, key_id: str) -> tuple[_Usage, float]:
        usage, now = self._usages.setdefault(key_id, _Usage()), self._clock()
        usage.requests.forget(now)
        usage.tokens.forget(now)
        return usage, now
