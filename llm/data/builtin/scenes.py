"""Compose conversations and pairs about the principles: every topic in every prompt, answered well and badly.

A model of a few million parameters learns nothing general from some hundred written prompts; composed ones are enough
to learn both ways of answering, to tell them apart, and to measure that on topics that were held out.

- conversations: each prompt with its good and with its bad answer. sft learns both on purpose: what the constraint of
  rlhf takes away must be there before.
- pairs `scene`: good against bad. Which is the more helpful one is left open: such a pair is the cost heads'.
- pairs `truncated`: a whole answer, good or bad, against the same cut short. They are the reward head's.
- pairs `harmless`: a prompt of no principle, answered against needlessly refused. They are the reward head's.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm.config import ConfigError
from llm.data.builtin.preferences import truncate
from llm.data.rows.conversations import PRINCIPLES
from llm.data.schema import Conversation, Preference, Records, hash_id, hash_share, pick

SCENE, HARMLESS = "scene", "harmless"


class Answers(BaseModel):
    """An answer is an opening and an ending."""

    model_config = ConfigDict(extra="forbid")
    openings: list[str] = Field(min_length=1)
    endings: list[str] = Field(min_length=1)


class Scene(BaseModel):
    """What the prompts and answers of one principle are composed of."""

    model_config = ConfigDict(extra="forbid")
    prompts: list[str] = Field(min_length=1)
    good: Answers
    bad: Answers
    topics: list[str] = Field(min_length=2)


def read_scenes(path: Path, source: str) -> Records:
    """Return the conversations and pairs of a file of scenes. Raises ConfigError naming the file and the fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
        scenes = {name: Scene.model_validate(scene) for name, scene in content.items()}
    except (OSError, yaml.YAMLError, AttributeError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if unknown := sorted(set(scenes) - {*PRINCIPLES, HARMLESS}):
        raise ConfigError(f"{path}: {unknown[0]!r} is not one of {', '.join((*PRINCIPLES, HARMLESS))}")
    records = Records()
    for name, scene in scenes.items():
        for topic in scene.topics:
            for made in _compose(source, name, scene, topic):
                records.extend(made)
    return records


def _compose(source: str, name: str, scene: Scene, topic: str) -> Iterator[Records]:
    """Yield what is made of each prompt about a topic; its group is the topic, the unit of the held-out split."""
    group, principle = f"{name}: {topic}", None if name == HARMLESS else name
    kind = HARMLESS if principle is None else SCENE
    for template in scene.prompts:
        question = template.format(topic=topic)
        good, bad = _answer(scene.good, "good", question), _answer(scene.bad, "bad", question)
        prompt = [{"role": "user", "content": question}]
        whole = pick([good, bad], "whole", question) if principle else good
        cut = truncate(whole, hash_share("cut", question))
        said = [good, bad] if principle else [good]
        yield Records(
            conversations=[
                Conversation(
                    hash_id(source, kind, question, answer),
                    group,
                    source,
                    kind,
                    [*prompt, {"role": "assistant", "content": answer}],
                )
                for answer in said
            ],
            preferences=[
                Preference(hash_id(source, kind, question), group, source, kind, prompt, good, bad, None, principle),
                Preference(hash_id(source, "truncated", question), group, source, "truncated", prompt, whole, cut),
            ],
        )


def _answer(parts: Answers, side: str, question: str) -> str:
    """Return the opening and ending that the question's hash names."""
    return f"{pick(parts.openings, side, 'opening', question)} {pick(parts.endings, side, 'ending', question)}"
