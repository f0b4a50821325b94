"""Preference pairs as token ids, and the order in which a reward model sees them.

A pair's two conversations share the prompt and both end with <|im_end|>.  Pairs that do not fit are left out
rather than cut: a cut answer would be a truncated one, which is the very thing that is called worse.

What is helpful and what is harmless are learned apart (Safe RLHF, arXiv:2310.12773, section 3.1): a pair of a principle
teaches that principle's cost head which answer is bad, and the reward head that neither is more helpful.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.config import ConfigError
from llm.data.chat import render
from llm.data.schema import hash_id, hash_share, iter_rows
from llm.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, the better one first, as ids."""

    id: str
    kind: str
    principle: str | None
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float
    tie: bool  # neither is the more helpful answer
    half: int  # 0 or 1 by the prompt's hash: what one reward model learns from, the other never sees

    @property
    def length(self) -> int:
        """Tokens of the longer conversation."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def read_split(path: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of a parquet file of data/clean that belong to a split, in file order."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run `dvc repro clean` first")
    return [row for row in iter_rows(path) if row["split"] == split]


def tokenize_pairs(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], max_tokens: int) -> list[Pair]:
    """Return the pairs that fit into `max_tokens`, in the order of the rows; a margin of 0 is a tie."""
    pairs = []
    chosen = tokenizer.encode_batch([row["chosen"] for row in rows])
    rejected = tokenizer.encode_batch([row["rejected"] for row in rows])
    for row, better, worse in zip(rows, chosen, rejected, strict=True):
        prompt, _ = render(tokenizer, row["prompt"], add_generation_prompt=True)
        said = "\0".join(message["content"] for message in row["prompt"])
        pair = Pair(
            id=row["id"],
            kind=row["kind"],
            principle=row["principle"],
            prompt=prompt,
            chosen=[*better, tokenizer.im_end_id],
            rejected=[*worse, tokenizer.im_end_id],
            margin=row["margin"] or 0.0,
            tie=row["margin"] == 0.0 or row["principle"] is not None,
            half=int(hash_share("reward half", said) * 2),
        )
        if pair.length <= max_tokens:
            pairs.append(pair)
    return pairs


def plan_batches(
    pairs: Sequence[Pair], steps: int, batch_pairs: int, shares: Mapping[str, float], seed: int
) -> list[list[Pair]]:
    """Return the pairs of every step; those of similar length share a batch, to save padding.

    Args:    shares: weight of each kind of pair; a kind that it does not name has weight 1, one that the data
             lacks none.  Each kind is gone through in hash order before any of it is met again.
    """
    pools: dict[str, list[Pair]] = {}
    for pair in pairs:
        pools.setdefault(pair.kind, []).append(pair)
    total = steps * batch_pairs
    weights = {kind: shares.get(kind, 1.0) for kind in sorted(pools)}
    rng = np.random.default_rng(seed)
    plan: list[Pair] = []
    done, scale = 0.0, total / sum(weights.values())
    for kind, weight in weights.items():
        done += weight * scale
        plan += _cycle(pools[kind], round(done) - len(plan), seed)
    plan = [plan[i] for i in rng.permutation(total)]
    batches: list[list[Pair]] = []
    window = 8 * batch_pairs
    for start in range(0, total, window):
        near = sorted(plan[start : start + window], key=lambda pair: (pair.length, pair.id))
        groups = [near[i : i + batch_pairs] for i in range(0, len(near), batch_pairs)]
        batches += [groups[i] for i in rng.permutation(len(groups))]
    return batches


def _cycle(pool: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    taken: list[Pair] = []
    epoch = 0
    while len(taken) < count:
        taken += sorted(pool, key=lambda pair: hash_id(str(seed), str(epoch), pair.id))
        epoch += 1
    return taken[:count]
