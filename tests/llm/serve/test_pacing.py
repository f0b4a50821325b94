"""How many tokens go out at a time: never later than promised, none lost, none twice."""

import random

from llm.serve.backend import Event, TokenScore
from llm.serve.pacing import HOLD_S, Pacer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _step(*numbers: int, token: int = 7) -> list[tuple[int, Event]]:
    return [(number, Event([token])) for number in numbers]


def test_the_first_token_goes_out_alone_and_then_four_at_a_time() -> None:
    pacer, sizes = Pacer(4, Clock()), []
    for token in range(9):
        pacer.put(_step(1, token=token))
        sizes.append([event.tokens for _, event in pacer.take()])
    assert sizes == [[[0]], [], [], [], [[1, 2, 3, 4]], [], [], [], [[5, 6, 7, 8]]]


def test_a_token_waits_no_longer_than_promised() -> None:
    clock = Clock()
    pacer = Pacer(1000, clock)
    pacer.put(_step(1))
    assert pacer.take() == _step(1)
    clock.now += 0.9 * HOLD_S
    pacer.put(_step(1, token=8))
    assert pacer.take() == []
    clock.now += 0.2 * HOLD_S
    assert pacer.take() == _step(1, token=8)


def test_a_new_stream_and_one_that_ends_take_the_others_along() -> None:
    pacer = Pacer(4, Clock())
    pacer.put(_step(1))
    pacer.take()
    pacer.put(_step(1))
    assert pacer.take() == []
    pacer.put(_step(1, 2))
    assert pacer.take() == [(1, Event([7, 7])), (2, Event([7]))]
    pacer.put(_step(1, 2))
    assert pacer.take() == []
    pacer.put([(1, Event([8], "stop")), (2, Event([8]))])
    assert pacer.take() == [(1, Event([7, 8], "stop")), (2, Event([7, 8]))]


def test_scores_stay_with_their_tokens() -> None:
    pacer = Pacer(2, Clock())
    for token in range(3):
        pacer.put([(1, Event([token], None, [TokenScore(-float(token), {})]))])
        taken = pacer.take()
    assert [(event.tokens, [score.logprob for score in event.scores]) for _, event in taken] == [([1, 2], [-1.0, -2.0])]


def test_a_dropped_request_is_forgotten() -> None:
    pacer = Pacer(4, Clock())
    pacer.put(_step(1))
    pacer.take()
    pacer.put(_step(1))
    pacer.drop(1)
    assert pacer.take(everything=True) == []
    pacer.put(_step(1))
    assert pacer.take() == _step(1), "a new one under its number begins at once"


def test_what_comes_out_is_what_went_in() -> None:
    draw, clock = random.Random(0), Clock()
    for interval in (1, 3, 8):
        pacer = Pacer(interval, clock)
        given: dict[int, list[int]] = {number: [] for number in range(6)}
        got: dict[int, list[int]] = {number: [] for number in range(6)}
        for _ in range(300):
            clock.now += draw.choice([0.001, 0.01, 0.1])
            events = [
                (n, Event([draw.randrange(99) for _ in range(draw.randint(1, 3))])) for n in range(draw.randint(0, 6))
            ]
            for number, event in events:
                given[number] += event.tokens
            pacer.put(events)
            for number, event in pacer.take():
                got[number] += event.tokens
        for number, event in pacer.take(everything=True):
            got[number] += event.tokens
        assert got == given
