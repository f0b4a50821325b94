"""Prompts that a policy practises on, and the order in which it meets them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.data.chat import render
from llm.data.schema import hash_id
from llm.data.tokenizer import Tokenizer
from llm.rl.pairs import read_split
from llm.rl.reward_model import PRINCIPLES

HARMLESS = "harmless"  # the kind of pairs whose prompts everybody should answer
POOLS = (*PRINCIPLES, HARMLESS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt; `key` is the hash of its words."""

    key: str
    ids: list[int]
    principle: str | None
    harmless: bool = False  # looks like one of a principle, and is to be answered

    @property
    def pool(self) -> str | None:
        """The kind of prompts that it takes turns with; None for the many of no particular kind."""
        return HARMLESS if self.harmless else self.principle


def read_prompts(
    preferences: Path, tokenizer: Tokenizer, max_tokens: int, readable: Mapping[str, Sequence[str]]
) -> tuple[list[Prompt], int]:
    """Return the different prompts of the training pairs that fit, and how many do not.

    They stand in hash order: any prefix is a fair sample.

    Args: readable: kinds of prompts whose costs can be read, per principle; others count as prompts of no principle.
    """
    found: dict[str, Prompt] = {}
    # Such prompts stand in pairs of other kinds too: those that say what they are come first.
    for row in sorted(read_split(preferences, "train"), key=_is_plain):
        key = hash_id("rlhf", *(message["content"] for message in row["prompt"]))
        if key not in found:
            ids, _ = render(tokenizer, row["prompt"], add_generation_prompt=True)
            principle = row["principle"] if row["kind"] in readable.get(row["principle"], ()) else None
            found[key] = Prompt(key, ids, principle, row["kind"] == HARMLESS)
    kept = [found[key] for key in sorted(found) if len(found[key].ids) <= max_tokens]
    return kept, len(found) - len(kept)


def _is_plain(row: Mapping[str, Any]) -> bool:
    return row["principle"] is None and row["kind"] != HARMLESS


def set_aside(prompts: Sequence[Prompt], count: int, principle_share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Return prompts to check policies on, `principle_share` of them about principles or harmless, and the others.

    Of no pool more than a third is set aside; other prompts take their places.
    """
    chosen: list[Prompt] = []
    for name in POOLS:
        pool = [prompt for prompt in prompts if prompt.pool == name]
        chosen += pool[: min(len(pool) // 3, int(count * principle_share / len(POOLS)))]
    chosen += [prompt for prompt in prompts if prompt.pool is None][: count - len(chosen)]
    keys = {prompt.key for prompt in chosen}
    return chosen, [prompt for prompt in prompts if prompt.key not in keys]


def plan_prompts(
    prompts: Sequence[Prompt], steps: int, prompts_per_step: int, principle_share: float, seed: int
) -> list[list[Prompt]]:
    """Return every step's prompts, `principle_share` of all being about a principle or harmless, each pool in its turn.

    Each pool is gone through in hash order before any of it is met again.
    """
    pools = {name: [p for p in prompts if p.pool == name] for name in (None, *POOLS)}
    principles = [name for name in POOLS if pools[name]]
    share = principle_share if pools[None] and principles else float(not pools[None])
    taken = Counter[str | None]()
    plan = []
    for step in range(steps):
        batch = []
        for place in range(prompts_per_step):
            # The k-th prompt is of one of the pools whenever share * k passes a whole number.
            k = step * prompts_per_step + place
            before, after = int(k * share), int((k + 1) * share)
            name = principles[before % len(principles)] if after > before else None
            batch.append(_draw(pools[name], taken[name], seed))
            taken[name] += 1
        plan.append(batch)
    return plan


def _draw(pool: Sequence[Prompt], count: int, seed: int) -> Prompt:
    epoch, place = divmod(count, len(pool))
    # A rotation per epoch keeps this O(1); the pool is in hash order already.
    offset = int(hash_id(str(seed), str(epoch))[:8], 16)
    return pool[(place + offset) % len(pool)]
