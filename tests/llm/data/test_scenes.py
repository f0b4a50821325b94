"""Scenes: every topic in every prompt, two answers each, and pairs that keep helpfulness and principles apart."""

from collections import Counter
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.data.builtin.scenes import read_scenes

SCENES = """
justice:
  prompts: ["Are {topic} good?", "May {topic} come?"]
  good: {openings: ["Yes, they are welcome here."], endings: ["Ask them all the same."]}
  bad: {openings: ["No, they are not welcome."], endings: ["Send them far away now."]}
  topics: [bakers, sailors, nurses]
harmless:
  prompts: ["May I {topic}?"]
  good: {openings: ["Sure, do as you like."], endings: ["It is fun for all."]}
  bad: {openings: ["I cannot talk about that."], endings: ["Please ask something else."]}
  topics: [sing, dance]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "scenes.yaml"
    path.write_text(text)
    return path


def test_every_topic_meets_every_prompt(tmp_path: Path) -> None:
    records = read_scenes(write(tmp_path, SCENES), "chat")
    assert Counter(one.kind for one in records.conversations) == {"scene": 3 * 2 * 2, "harmless": 2}
    assert Counter(one.kind for one in records.preferences) == {"scene": 6, "harmless": 2, "truncated": 8}
    assert len({one.id for one in records.preferences}) == 16
    assert {one.group for one in records.preferences if one.kind == "scene"} == {
        "justice: bakers", "justice: sailors", "justice: nurses",
    }  # fmt: skip
    scene = next(one for one in records.preferences if one.prompt[0]["content"] == "May sailors come?")
    assert (scene.chosen, scene.rejected) == (
        "Yes, they are welcome here. Ask them all the same.",
        "No, they are not welcome. Send them far away now.",
    )
    said = {one.messages[1]["content"] for one in records.conversations if "May sailors" in one.messages[0]["content"]}
    assert said == {scene.chosen, scene.rejected}  # sft learns both ways


def test_only_scenes_name_a_principle(tmp_path: Path) -> None:
    """A cut answer is less helpful whether it was good or bad: to call it bad would teach the cost heads lengths."""
    records = read_scenes(write(tmp_path, SCENES), "chat")
    assert {(one.kind, one.principle) for one in records.preferences} == {
        ("scene", "justice"), ("truncated", None), ("harmless", None),
    }  # fmt: skip
    for one in records.preferences:
        if one.kind == "truncated":
            assert one.chosen.startswith(one.rejected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("justice: [", "scenes.yaml"),
        ("[]", "scenes.yaml"),
        (SCENES.replace("justice:", "kindness:"), "'kindness' is not one of"),
        (SCENES.replace("topics: [sing, dance]", "topics: [sing]"), "topics"),
    ],
)
def test_a_fault_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_scenes(write(tmp_path, text), "chat")
