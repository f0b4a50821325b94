"""The split: by hash, whatever else is there; and the order in which documents are read."""

import pytest

from llm.config import ConfigError
from llm.data.dedup.duplicates import key_words
from llm.data.schema import hash_share, to_json
from llm.data.split import Splits, Surplus, find_seen, reading_key


def test_the_split_is_by_hash() -> None:
    groups = [f"package{i}" for i in range(400)]
    splits = Splits(0.2)
    assert 50 < sum(splits(group) == "val" for group in groups) < 110
    assert all((splits(group) == "val") == (hash_share("split", group) < 0.2) for group in groups)


def test_both_sides_hold_documents() -> None:
    for holdout in (1e-9, 1 - 1e-9):
        splits = Splits(holdout, ["a", "b", "b"])
        assert {splits("a"), splits("b")} == {"train", "val"}
    with pytest.raises(ConfigError, match="one single document"):
        Splits(0.5, ["a", "a"])


def test_sentences_seen_in_training() -> None:
    texts = ["mills.turn()\n\nTurn the *wheel* once. Then stop."]
    wanted = frozenset(map(key_words, ["Turn the wheel once.", "Then", "Stop the wheel."]))
    assert find_seen(texts, wanted) == {"turn the wheel once"}


def list_dropped(sizes: list[tuple[str, int]], max_bytes: int, share: float) -> list[int]:
    surplus = Surplus(max_bytes, share)
    return [i for i, (group, size) in enumerate(sizes) if surplus.drops(group, size)]


def test_surplus_keeps_the_first_and_shares_the_room() -> None:
    one = [("g", 90), ("g", 30), ("g", 10)]
    assert list_dropped(one, 50, 1.0) == [1, 2]
    assert list_dropped(one, 100, 1.0) == [1]
    two = [(f"g{i // 3}", 30) for i in range(6)]
    assert list_dropped(two, 1000, 0.06) == [2, 5]  # 60 bytes per group
    assert list_dropped(two, 1000, 0.01) == [1, 2, 4, 5]  # every group gives one at least


def test_reading_order_keeps_modules_together() -> None:
    rows = [("b", "m.y", "f"), ("a", "m.x", "g"), ("b", "m.x", "f"), ("b", "m.x", "a")]
    keys = {reading_key(group, to_json({"module": module, "name": name}), name): module + name
            for group, module, name in rows if group == "b"}  # fmt: skip
    assert [keys[key] for key in sorted(keys)] == ["m.xa", "m.xf", "m.yf"]
    offsets = {reading_key("g", to_json({"file": "f", "offset": n}), str(n)): n for n in (900, 10_000, 0)}
    assert [offsets[key] for key in sorted(offsets)] == [0, 900, 10_000]
