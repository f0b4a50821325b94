"""What a user may say of a source, and the families of rows that are recognised by their columns.

Nothing needs saying where the content speaks for itself: the first family in `SHAPES` whose needed columns are all
there says what a row is. `kind` and `columns` of a source override that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from llm.config import BaseParams

RowKind = Literal[
    "auto", "text", "code", "chat", "pair", "ranked", "labelled", "choices", "instances", "instruction", "qa"
]
Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A family of rows: our column -> the names it goes by; all of `needs` must be there, any of `may` can be."""

    kind: RowKind
    needs: Names
    may: Names = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Return every column with its names."""
        return {**self.may, **self.needs}


# Names that one thing goes by in published data sets, in the order in which they are looked for.
PROMPT = ("prompt", "question", "instruction", "input", "query", "history", "post")
TALK = ("messages", "conversations", "conversation", "dialog", "dialogue", "transcript")
SYSTEM = ("system", "system_prompt")
CONTEXT = ("context", "given_info", "passage", "background")
REPLY = ("completion", "response", "output", "answer", "reply")
ANSWER = (*REPLY, "target", "solution", "best_answer", "correct_answer", "answers")
BETTER = ("chosen", "chosen_response", "preferred", "response_j", "answer_matching_behavior")
WORSE = ("rejected", "rejected_response", "dispreferred", "response_k", "answer_not_matching_behavior")
VERDICT = ("label", "winner", "preference", "verdict", "better_response_id", "labels")
RIGHT = ("answerKey", "answer_idx", "answer_index", "correct_option", "label", "answer", "gold", "correct")
# `sentence_good` enters alone: no model should read its ungrammatical twin as text, and without a prompt the two
# make no preference. `original` is a text before its repair, which is what cleaning has to work on.
TEXT = (
    *("text", "content", "document", "body", "passage", "article", "full_text", "source_text", "raw_content"),
    *("sentence_good", "sentence", "markdown", "code", "original"),
)

_ASKED = {"prompt": (*PROMPT, *TALK), "input": ("input", "context"), "system": SYSTEM}
_SIDES = ("response_", "output_", "answer_", "completion_", "conversation_", "response", "output", "answer")


def _two_sides(first: str, second: str) -> Shape:
    """Return the shape of two answers and a verdict on them, the answers' names ending in `first` and `second`."""
    needs = {"first": tuple(one + first for one in _SIDES), "second": tuple(one + second for one in _SIDES)}
    return Shape("ranked", {**needs, "label": VERDICT}, _ASKED)


# The most telling columns first: a row of `question`, `choices` and `answer` is more than a question with its answer.
SHAPES = (
    Shape(
        "pair", {"chosen": BETTER, "rejected": WORSE}, {**_ASKED, "margin": ("margin",), "principle": ("principle",)}
    ),
    _two_sides("1", "2"),
    _two_sides("a", "b"),
    _two_sides("0", "1"),
    Shape(
        "choices",
        {"question": ("question", "question_stem", "query", "problem", "ctx", "prompt", "input"), "label": RIGHT}
        | {"options": ("choices", "options", "endings", "candidates")},
        {"context": CONTEXT},
    ),
    Shape(
        "choices",
        {"question": ("question",), "option_0": ("ans0", "A"), "option_1": ("ans1", "B"), "label": RIGHT},
        {"context": CONTEXT, "option_2": ("ans2", "C"), "option_3": ("ans3", "D"), "option_4": ("ans4", "E")},
    ),
    Shape("labelled", {"prompt": ("prompt",), "reply": REPLY, "label": ("label", "desirable")}, _ASKED),
    Shape("instances", {"instruction": ("instruction",), "instances": ("instances",)}),
    # A task in words and its program: the tests say that `code` is one, not a language's or a country's.
    Shape("qa", {"question": ("prompt", "text"), "answer": ("code",), "tests": ("test_list", "tests")}),
    Shape("code", {"prompt": ("prompt",), "solution": ("canonical_solution",)}),
    Shape("chat", {"messages": TALK}, {"system": SYSTEM}),
    Shape(
        "instruction",
        {"instruction": ("instruction",), "output": ("output", "response", "completion", "answer")},
        {"input": ("input", "context"), "system": SYSTEM},
    ),
    Shape("qa", {"question": (*PROMPT, "problem"), "answer": ANSWER}, {"context": CONTEXT, "system": SYSTEM}),
    Shape("text", {"text": TEXT}),
)


class SourceFormat(BaseParams):
    """What a source is, as far as its user says so, and how much of it is read."""

    format: str = Field(
        "auto", pattern=r"^[a-z][a-z0-9_]*$", description="a reader's name (jsonl, html, ...); auto: by the content"
    )
    kind: RowKind = Field("auto", description="what each row is; auto: by its columns")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our column -> the source's, such as {text: body} or {question: q, answer: a}"
    )
    config: str = Field("", max_length=200, description="configuration of a Hugging Face dataset; empty: its only one")
    split: str = Field("train", min_length=1, max_length=200, description="split of a Hugging Face dataset")
    license: str = Field("unknown", min_length=1, max_length=200, description="licence of rows that name none")
    use: Literal["train", "evaluation"] = Field(
        "train", description="evaluation: never trained on; training text that repeats it is dropped"
    )
    max_record_bytes: int = Field(100_000_000, ge=1, le=1 << 31, description="a longer line, row or text is rejected")
    max_expand_ratio: float = Field(
        200.0, ge=1, le=1e6, description="a compressed file that grows beyond so many times its size is rejected"
    )
    max_bytes: int = Field(1 << 40, ge=1, le=1 << 50, description="reading stops after so many bytes of records")
    max_records: int = Field(1 << 40, ge=1, le=1 << 50, description="reading stops after so many records")

    @model_validator(mode="after")
    def _check_columns(self) -> "SourceFormat":
        if not self.shapes:
            known = "; ".join(f"{shape.kind}: {', '.join(shape.columns)}" for shape in SHAPES)
            said = f"columns {', '.join(sorted(self.columns))}" + (f" of kind {self.kind}" * (self.kind != "auto"))
            raise ValueError(f"{said}: no kind of row has these; there are {known}")
        return self

    @cached_property
    def renamed(self) -> tuple[tuple[str, str], ...]:
        """Return `columns` as a key."""
        return tuple(sorted(self.columns.items()))

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shapes that a row of this source can have."""
        return list_shapes(self.kind, frozenset(self.columns))


def list_shapes(kind: RowKind, columns: frozenset[str]) -> tuple[Shape, ...]:
    """Return the shapes of a kind that have all of these columns."""
    return tuple(shape for shape in SHAPES if kind in ("auto", shape.kind) and columns <= set(shape.columns))
