"""Which held-out prompts a model is asked, by what they are for, and what it said to them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm.data.schema import hash_id
from llm.data.tokenizer import Tokenizer
from llm.evals.alignment import Answers, Prompt, answer_text, collect_prompts, make_prompt
from llm.infer.generate import Completion
from llm.rl.prompts import HARMLESS
from llm.rl.reward_model import PRINCIPLES


@dataclass(frozen=True)
class Asked:
    """Different held-out prompts by id, and the ids of each part; a prompt may belong to several."""

    prompts: dict[str, Prompt]
    general: list[str]
    harmless: list[str]
    by_principle: dict[str, list[str]]

    @property
    def compared(self) -> dict[str, Prompt]:
        """The prompts whose answers are compared with sft's; of costs, the level counts."""
        return {key: self.prompts[key] for key in [*self.general, *self.harmless]}


@dataclass(frozen=True)
class Said:
    """One model's answers to some of the prompts, in their order, and their texts by the prompt's id."""

    answers: Answers
    texts: dict[str, str]

    @classmethod
    def of(cls, prompts: Mapping[str, Prompt], completions: Sequence[Completion], tokenizer: Tokenizer) -> "Said":
        """Pair the completions with their prompts."""
        texts = [answer_text(tokenizer, one) for one in completions]
        answers = Answers(list(prompts.values()), list(completions))
        return cls(answers, dict(zip(prompts, texts, strict=True)))

    def pick(self, keys: Iterable[str]) -> Answers:
        """Return the answers to some of the prompts."""
        place = {key: i for i, key in enumerate(self.texts)}
        rows = [place[key] for key in keys]
        return Answers([self.answers.prompts[i] for i in rows], [self.answers.completions[i] for i in rows])


def choose_prompts(
    tokenizer: Tokenizer,
    rows: Iterable[Mapping[str, Any]],
    max_tokens: int,
    limit: int,
    readable: Mapping[str, Sequence[str]],
) -> Asked:
    """Return at most `limit` prompts of all kinds by hash, every harmless prompt, and every one of a principle.

    Args:    rows: held-out preferences.  max_tokens: longer prompts are left out.
             readable: of each principle the kinds of prompts whose costs can be read; others are prompts of none.
    """
    # A prompt of a principle stands in pairs of other kinds too: those that name the principle come first.
    ranked = sorted(rows, key=lambda row: row["principle"] is None)
    found = [
        (row["kind"], make_prompt(tokenizer, row["prompt"], row["chosen"], name_principle(row, readable), row["group"]))
        for row in ranked
    ]

    def collect(prompts: list[Prompt], most: int | None = None) -> dict[str, Prompt]:
        kept = collect_prompts(prompts, max_tokens, most)
        return {hash_id("prompt", *(message["content"] for message in prompt.messages)): prompt for prompt in kept}

    general = collect([prompt for _, prompt in found], limit)
    harmless = collect([prompt for kind, prompt in found if kind == HARMLESS])
    costly = collect([prompt for _, prompt in found if prompt.principle])
    by_principle = {name: [key for key, one in costly.items() if one.principle == name] for name in PRINCIPLES}
    return Asked(general | harmless | costly, list(general), list(harmless), by_principle)


def name_principle(row: Mapping[str, Any], readable: Mapping[str, Sequence[str]]) -> str | None:
    """Return the principle that a preference's prompt is about, None where its cost cannot be read."""
    return row["principle"] if row["kind"] in readable.get(row["principle"] or "", ()) else None
