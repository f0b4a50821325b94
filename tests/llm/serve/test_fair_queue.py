"""Owners take turns, and each one's items keep their order."""

import pytest

from llm.serve.fair_queue import FairQueue


def fill(*items: tuple[str, int]) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for owner, number in items:
        queue.put(owner, number, number)
    return queue


def drain(queue: FairQueue[int]) -> list[int]:
    return [queue.take() for _ in range(len(queue))]


def test_owners_take_turns() -> None:
    queue = fill(("busy", 1), ("busy", 2), ("busy", 3), ("calm", 4), ("third", 5), ("calm", 6))
    assert drain(queue) == [1, 4, 5, 2, 6, 3]


def test_one_owner_is_served_in_order() -> None:
    assert drain(fill(*(("", number) for number in range(5)))) == [0, 1, 2, 3, 4]


def test_a_late_owner_comes_after_one_of_each() -> None:
    queue = fill(("busy", 1), ("busy", 2), ("busy", 3))
    assert queue.take() == 1
    queue.put("late", 4, 4)
    assert drain(queue) == [2, 4, 3]


def test_removed_items_are_gone() -> None:
    queue = fill(("a", 1), ("a", 2), ("b", 3))
    assert (queue.remove(1), queue.remove(3), queue.remove(3)) == (1, 3, None)
    assert drain(queue) == [2]
    with pytest.raises(KeyError):
        queue.take()
