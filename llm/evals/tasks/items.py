"""The four kinds of items. An item's id is a hash of its content: the same in every file, order and run.

A question is asked in one of two forms: as `Q: ... A:`, or `verbatim`, where the text itself is to be continued.
With a chat template either is a user's turn. A prompt is a text, or messages.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from llm.data.schema import Message

Prompt = str | list[Message]
Form = Literal["qa", "verbatim"]
# What an answer is cut out of a text by; group 1 of the last match, else the whole match.
FIRST_LINE = r"\s*([^\n]*)"
AFTER_HASHES = r"####\s*([^\n]*)"


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with options, some of them right; `measure` names what it is to prefer a right one."""

    id: str
    question: str
    options: tuple[str, ...]
    right: tuple[int, ...]
    context: str = ""
    form: Form = "qa"
    measure: str = "accuracy"
    group: str = ""

    @property
    def texts(self) -> list[str]:
        """What a leak of this item would hold."""
        return [join_parts(self.context, self.question)]


@dataclass(frozen=True, slots=True)
class Generation:
    """A question to be answered freely: right is what `extract` finds in the answer and in what was generated.

    `solution` is the worked answer that an example shows; `answer` is what must be found.
    """

    id: str
    question: str
    solution: str
    answer: str
    extract: str = FIRST_LINE
    max_new_tokens: int = 32
    context: str = ""
    form: Form = "qa"
    group: str = ""

    @property
    def texts(self) -> list[str]:
        """What a leak of this item would hold."""
        return [join_parts(self.context, self.question), self.solution]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts of which the first should be the more probable; under another `measure` it is asked how often it is."""

    id: str
    good: str
    bad: str
    measure: str = "accuracy"
    group: str = ""

    @property
    def texts(self) -> list[str]:
        """What a leak of this item would hold."""
        return [self.good]


@dataclass(frozen=True, slots=True)
class Passage:
    """A text whose probability is measured, after a question where there is one."""

    id: str
    text: str
    question: str = ""
    group: str = ""

    @property
    def texts(self) -> list[str]:
        """What a leak of this item would hold."""
        return [self.text]


Item = Choice | Generation | Pair | Passage


@dataclass
class Task:
    """Items of one kind, and how many rows were no items, by reason; `faults` are file, line and error of each."""

    name: str
    items: list[Item]
    rejected: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """`choice`, `generation`, `pair` or `passage`."""
        return type(self.items[0]).__name__.lower()


def join_parts(*parts: str) -> str:
    """The parts that are not blank, with a blank line between."""
    return "\n\n".join(part for part in parts if part.strip())


def extract_answer(text: str, pattern: str) -> str | None:
    """What the last match of the pattern holds, compared without case, commas, `$` and a final dot; None: no match."""
    found = list(re.finditer(pattern, text)) if pattern != FIRST_LINE else [re.match(pattern, text)]
    if not found or (last := found[-1]) is None:
        return None
    return normalise(last[1] if last.re.groups else last[0])


def normalise(answer: str) -> str:
    """An answer as it is compared."""
    return " ".join(re.sub(r"[,$]", "", answer).casefold().split()).rstrip(".")
