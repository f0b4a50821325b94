"""The limiter's arithmetic, by hand and against a naive window; no clock runs here."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.serve.limits import SAVE_S, SLOTS_PER_S, Budget, Limiter, LimitReached, Window
from llm.serve.params import KeyLimits

TICK = 1 / 64  # a power of two: sums of ticks are exact
STEPS = st.lists(st.tuples(st.integers(0, 40 * 64), st.integers(1, 5)), max_size=30)  # ticks to wait, amount


class Clock:
    """A time that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.date = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)

    def __call__(self) -> float:
        return self.now


@given(STEPS, st.integers(1, 12))
def test_no_minute_ever_holds_more_than_the_limit(steps: list[tuple[int, int]], limit: int) -> None:
    window, now, admitted = Window(), 0.0, []
    for ticks, _ in steps:
        now += ticks * TICK
        window.forget(now)
        if window.wait_s(limit, now) == 0:
            window.add(1, now)
            admitted.append(now)
    for start in admitted:
        assert sum(start <= moment < start + 60 for moment in admitted) <= limit


@given(STEPS, st.integers(1, 12))
def test_the_wait_is_long_enough_and_not_longer_than_a_slot_more(steps: list[tuple[int, int]], limit: int) -> None:
    window, now, added = Window(), 0.0, []
    for ticks, amount in steps:
        now += ticks * TICK
        window.forget(now)
        window.add(amount, now)
        added.append((now, amount))
        wait = window.wait_s(limit, now)
        naive = [moment for moment, _ in added]
        totals = {m: sum(a for t, a in added if t + 60 > m + 60) for m in naive}  # left once m is a minute old
        earliest = 0.0
        if sum(a for t, a in added if t + 60 > now) >= limit:
            earliest = min(m + 60 - now for m in naive if m + 60 > now and totals[m] < limit)
        assert earliest <= wait <= earliest + 1 / SLOTS_PER_S
        later = Window()
        later.total, later._slots = window.total, window._slots.copy()
        later.forget(now + wait)
        assert later.wait_s(limit, now + wait) == 0


@given(STEPS)
def test_a_minute_later_nothing_is_left(steps: list[tuple[int, int]]) -> None:
    window, now = Window(), 0.0
    for ticks, amount in steps:
        now += ticks * TICK
        window.forget(now)
        window.add(amount, now)
    assert len(window._slots) <= 61 * SLOTS_PER_S
    now += window.reset_s(now)
    window.forget(now)
    assert window.total == 0
    assert not window._slots


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock, tmp_path: Path) -> Limiter:
    return Limiter(Budget(tmp_path / "usage.json", lambda: clock.date), clock)


def refusal(limiter: Limiter, limits: KeyLimits) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        limiter.begin("a", limits)
    return caught.value


def test_requests_of_a_minute(limiter: Limiter, clock: Clock) -> None:
    limits = KeyLimits(requests_per_minute=2)
    for clock.now in (1.0, 11.0):
        limiter.begin("a", limits)
        limiter.end("a")
    clock.now = 21.0
    assert refusal(limiter, limits).retry_after_s == 40.0
    limiter.begin("b", limits)  # another key has its own minute
    clock.now = 61.0
    limiter.begin("a", limits)
    assert refusal(limiter, limits).retry_after_s == 10.0


def test_tokens_of_a_minute_refuse_once_they_are_used(limiter: Limiter, clock: Clock) -> None:
    limits = KeyLimits(tokens_per_minute=100)
    limiter.charge("a", 99)
    limiter.begin("a", limits)
    clock.now = 30.0
    limiter.charge("a", 50)
    assert refusal(limiter, limits).retry_after_s == 30.0  # when the 99 are a minute old
    assert limiter.describe("a", limits)["x-ratelimit-remaining-tokens"] == "0"
    clock.now = 60.0
    limiter.begin("a", limits)
    assert limiter.describe("a", limits) == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "60.000s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "50",
        "x-ratelimit-reset-tokens": "30.000s",
    }


def test_parallel_requests(limiter: Limiter) -> None:
    limits = KeyLimits(parallel=2)
    limiter.begin("a", limits)
    limiter.begin("a", limits)
    assert "2 requests" in str(refusal(limiter, limits))
    limiter.end("a")
    limiter.begin("a", limits)


def test_daily_budget_ends_at_midnight(limiter: Limiter, clock: Clock) -> None:
    limits = KeyLimits(tokens_per_day=10)
    limiter.charge("a", 10)
    assert refusal(limiter, limits).retry_after_s == 60.0
    clock.date += timedelta(minutes=1)
    limiter.begin("a", limits)


def test_daily_budget_survives_a_restart_and_is_shared(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "usage.json"
    first = Budget(path, lambda: clock.date)
    second = Budget(path, lambda: clock.date)
    first.charge("a", 5)
    assert Budget(path, lambda: clock.date).used("a") == 5
    assert path.stat().st_mode & 0o777 == 0o600
    first.charge("a", 7)  # too soon after the last save
    assert json.loads(path.read_text())["tokens"] == {"a": 5}
    second.charge("a", 100)
    clock.date += timedelta(seconds=SAVE_S)
    first.charge("a", 1)
    assert Budget(path, lambda: clock.date).used("a") == first.used("a") == 113
    clock.date += timedelta(days=1)
    assert first.used("a") == 0
    first.save()
    assert json.loads(path.read_text()) == {"day": "2026-03-02", "tokens": {}}


def test_unreadable_budget_is_said_and_counted_anew(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "usage.json"
    path.write_text("[")
    budget = Budget(path, lambda: clock.date)
    assert budget.used("a") == 0
    assert "begin at 0" in caplog.text
    budget.charge("a", 3)
    assert Budget(path, lambda: clock.date).used("a") == 3


def test_budget_that_cannot_be_saved_is_kept_in_memory(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    budget = Budget(tmp_path / "file" / "usage.json", lambda: clock.date)
    budget.charge("a", 3)
    budget.charge("a", 3)
    assert budget.used("a") == 6
    assert "not saved" in caplog.text
