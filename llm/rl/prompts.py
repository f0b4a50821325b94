"""Prompts that a policy practises on, and the order in which it meets them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.data.chat import render
from llm.data.schema import hash_id
from llm.data.tokenizer import Tokenizer
from llm.rl.pairs import read_split


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt; `key` is the hash of its words."""

    key: str
    ids: list[int]
    principle: str | None


def read_prompts(preferences: Path, tokenizer: Tokenizer, max_tokens: int) -> list[Prompt]:
    """Return the different prompts of the training pairs that fit, in hash order: any prefix is a fair sample."""
    found: dict[str, Prompt] = {}
    for row in read_split(preferences, "train"):
        key = hash_id("rlhf", *(message["content"] for message in row["prompt"]))
        if key not in found:
            ids, _ = render(tokenizer, row["prompt"], add_generation_prompt=True)
            found[key] = Prompt(key, ids, row["principle"])
    return [found[key] for key in sorted(found) if len(found[key].ids) <= max_tokens]


def plan_prompts(
    prompts: Sequence[Prompt], steps: int, prompts_per_step: int, principle_share: float, seed: int
) -> list[list[list[int]]]:
    """Return the ids of every step's prompts, `principle_share` of all being about a principle.

    Each pool is gone through in hash order before any of it is met again.
    """
    pools = [[p for p in prompts if p.principle is None], [p for p in prompts if p.principle is not None]]
    share = principle_share if pools[0] and pools[1] else float(not pools[0])
    taken = [0, 0]
    plan: list[list[list[int]]] = []
    for step in range(steps):
        batch = []
        for place in range(prompts_per_step):
            # The k-th prompt is about a principle whenever share * k passes a whole number.
            k = step * prompts_per_step + place
            which = int(int((k + 1) * share) > int(k * share))
            batch.append(_draw(pools[which], taken[which], seed).ids)
            taken[which] += 1
        plan.append(batch)
    return plan


def _draw(pool: Sequence[Prompt], count: int, seed: int) -> Prompt:
    epoch, place = divmod(count, len(pool))
    # A rotation per epoch keeps this O(1); the pool is in hash order already.
    offset = int(hash_id(str(seed), str(epoch))[:8], 16)
    return pool[(place + offset) % len(pool)]
