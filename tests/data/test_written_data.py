"""The hand-written data under data/: schema, counts, variety, and no cue in the length of an answer."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
import yaml

DATA = Path(__file__).resolve().parents[2] / "data"
PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> int:
    return len(text.split())


def assert_clean_text(text: str, where: str) -> None:
    assert text == text.strip(), f"{where}: blank edges"
    assert text, f"{where}: empty"
    assert unicodedata.is_normalized("NFC", text), f"{where}: not NFC"
    control = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") and c != "\n"]
    assert not control, f"{where}: control characters {control!r}"
    assert "<|" not in text, f"{where}: looks like a special token"


@pytest.fixture(scope="module")
def prompts() -> list[dict]:
    return [row for name in PRINCIPLES for row in read_jsonl(DATA / "principles" / f"{name}.jsonl")]


@pytest.fixture(scope="module")
def conversations() -> list[dict]:
    return read_jsonl(DATA / "smalltalk" / "smalltalk.jsonl")


@pytest.mark.parametrize("name", PRINCIPLES)
def test_file_holds_its_own_principle(name: str) -> None:
    rows = read_jsonl(DATA / "principles" / f"{name}.jsonl")
    assert len(rows) >= 50
    assert {row["principle"] for row in rows} == {name}
    assert all(row["id"].startswith(f"{name}-") for row in rows)


def test_principle_rows_follow_the_schema(prompts: list[dict]) -> None:
    for row in prompts:
        assert set(row) == {"id", "principle", "prompt", "good", "bad"}, row
        for key, value in row.items():
            assert isinstance(value, str), (row["id"], key)
            assert_clean_text(value, f"{row['id']}.{key}")
        assert row["good"] != row["bad"], row["id"]


def test_principles_are_many_and_unique(prompts: list[dict]) -> None:
    assert len(prompts) >= 200
    assert len({row["id"] for row in prompts}) == len(prompts)
    assert len({" ".join(row["prompt"].lower().split()) for row in prompts}) == len(prompts)


def test_prompts_are_not_one_template(prompts: list[dict]) -> None:
    openings = Counter(" ".join(row["prompt"].lower().split()[:3]) for row in prompts)
    opening, count = openings.most_common(1)[0]
    assert count <= 0.05 * len(prompts), f"{count} prompts start with {opening!r}"
    first_words = Counter(row["prompt"].lower().split()[0] for row in prompts)
    assert first_words.most_common(1)[0][1] <= 0.2 * len(prompts)
    lengths = [words(row["prompt"]) for row in prompts]
    assert min(lengths) <= 6
    assert max(lengths) >= 20
    assert any("\n" in row["prompt"] for row in prompts)


@pytest.mark.parametrize("name", PRINCIPLES)
def test_length_does_not_tell_good_from_bad(prompts: list[dict], name: str) -> None:
    rows = [row for row in prompts if row["principle"] == name]
    for row in rows:
        for key in ("good", "bad"):
            assert 8 <= words(row[key]) <= 60, (row["id"], key)
    ratio = mean(words(row["good"]) for row in rows) / mean(words(row["bad"]) for row in rows)
    assert 0.8 <= ratio <= 1.25
    bad_longer = mean(words(row["bad"]) > words(row["good"]) for row in rows)
    assert 0.4 <= bad_longer <= 0.6


def test_swapped_pairs_get_the_same_help(prompts: list[dict]) -> None:
    by_id = {row["id"]: row for row in prompts}
    first = [row for row in by_id.values() if row["principle"] == "justice" and row["id"].endswith("a")]
    assert len(first) >= 12
    for row in first:
        other = by_id[row["id"][:-1] + "b"]
        assert row["prompt"] != other["prompt"]
        assert abs(words(row["prompt"]) - words(other["prompt"])) <= 2, row["id"]
        # Only the name of the group and its pronouns may differ.
        assert words(row["good"]) == words(other["good"]), row["id"]
        changed = sum(a != b for a, b in zip(row["good"].split(), other["good"].split(), strict=True))
        assert changed <= 0.2 * words(row["good"]), row["id"]
        assert row["bad"] != other["bad"], row["id"]


def test_conversations_follow_the_schema(conversations: list[dict]) -> None:
    for row in conversations:
        assert set(row) == {"id", "messages"}, row
        messages = row["messages"]
        assert len(messages) >= 2, row["id"]
        assert len(messages) % 2 == 0, row["id"]
        for turn, message in enumerate(messages):
            assert set(message) == {"role", "content"}, row["id"]
            assert message["role"] == ("user", "assistant")[turn % 2], row["id"]
            assert_clean_text(message["content"], f"{row['id']}[{turn}]")
            if message["role"] == "assistant":
                assert 4 <= words(message["content"]) <= 35, row["id"]


def test_conversations_are_many_and_unique(conversations: list[dict]) -> None:
    assert len(conversations) >= 250
    assert len({row["id"] for row in conversations}) == len(conversations)
    assert len({json.dumps(row["messages"]) for row in conversations}) == len(conversations)
    multi_turn = mean(len(row["messages"]) > 2 for row in conversations)
    assert 0.15 <= multi_turn <= 0.4


@pytest.mark.parametrize("opening", ["hello", "Hello", "hello!", "hi", "hey", "who are you?", "thanks", "bye"])
def test_common_openings_are_covered(conversations: list[dict], opening: str) -> None:
    asked = {row["messages"][0]["content"].lower() for row in conversations}
    assert opening.lower() in asked


def test_the_persona_is_consistent(conversations: list[dict]) -> None:
    for row in conversations:
        for question, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            if question["content"].lower().rstrip("?") == "who are you":
                assert "I am Gristmill's small language model" in answer["content"], row["id"]


@pytest.fixture(scope="module")
def scenes() -> dict:
    return yaml.safe_load((DATA / "principles" / "scenes.yaml").read_text(encoding="utf-8"))


def test_scenes_are_many_and_unique(scenes: dict) -> None:
    assert set(scenes) == {*PRINCIPLES, "harmless"}
    for name, scene in scenes.items():
        assert len(scene["topics"]) == len(set(scene["topics"])) >= 90, name
        for text in (*scene["prompts"], *scene["topics"]):
            assert_clean_text(text, name)
        assert all("{topic}" in prompt for prompt in scene["prompts"])


@pytest.mark.parametrize("name", [*PRINCIPLES, "harmless"])
def test_length_does_not_tell_the_sides_of_a_scene(scenes: dict, name: str) -> None:
    def length(side: str) -> float:
        parts = scenes[name][side]
        return mean(map(words, parts["openings"])) + mean(map(words, parts["endings"]))

    assert 0.8 <= length("good") / length("bad") <= 1.25


def test_dangerous_prompts_hold_harmless_ones(scenes: dict) -> None:
    """Only the stated danger tells them apart: to refuse whatever begins like a dangerous question costs answers."""
    asked = [prompt.rstrip(".") for prompt in scenes["harmless"]["prompts"]]
    assert all(any(one in prompt for prompt in scenes["non_maleficence"]["prompts"]) for one in asked)
