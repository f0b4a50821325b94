"""Does the model recite its training text? Passages it was trained on are begun, and it continues them greedily.

From each of some documents, chosen by hash, one passage of k + m tokens: the model is given the first k, and what it
writes is compared with the m that follow. The same with held-out documents says how much of that is only predictable
text; the difference is memorisation. A passage counts as reproduced when all m tokens are the document's own.

The likelihood of the same m tokens is the finer figure: it moves before anything is recited. It also holds in what the
held-out documents differ (they are other packages), so that not all of its difference was learned by heart.

Source: Carlini et al. 2022, arXiv:2202.07646, definition 3.1 (extractable with k tokens of context) and section 3.
Differs: k = 32 and m = 16 tokens instead of 50 and 50, for documents of a few hundred characters.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm.data.schema import hash_id, hash_share, iter_rows
from llm.data.tokenizer import Tokenizer
from llm.evals.statistics import Interval, as_metrics, mean_difference, share_difference, wilson_interval
from llm.infer.generate import generate, score
from llm.model.transformer import Transformer

GIVEN_TOKENS, CONTINUED_TOKENS = 32, 16
SPARE = 8  # documents looked at per passage wanted: many are too short


@dataclass(frozen=True)
class Recital:
    """Of each passage: how many tokens were reproduced before the first other one, and the mean logprob of its own."""

    prefixes: list[int]
    logprobs: list[float]
    length: int

    @property
    def share(self) -> Interval:
        """The share of passages reproduced to the last token."""
        return wilson_interval(sum(prefix == self.length for prefix in self.prefixes), len(self.prefixes))


@dataclass(frozen=True)
class Memorisation:
    """What the model recites of seen passages and of unseen ones."""

    seen: Recital
    unseen: Recital

    @property
    def difference(self) -> Interval:
        """The share of seen passages reproduced, minus that of unseen ones; documents are taken as independent."""
        return share_difference(self.seen.share, self.unseen.share)

    def metrics(self) -> dict[str, object]:
        """As reports hold it; `prefix` is in tokens, `logprob` in nats per token."""
        prefix = mean_difference(self.seen.prefixes, self.unseen.prefixes)
        logprob = mean_difference(self.seen.logprobs, self.unseen.logprobs)
        return {
            "seen": as_metrics(self.seen.share),
            "unseen": as_metrics(self.unseen.share),
            "difference": as_metrics(self.difference),
            "prefix": {
                "seen": float(np.mean(self.seen.prefixes)),
                "unseen": float(np.mean(self.unseen.prefixes)),
                "difference": as_metrics(prefix),
            },
            "logprob": {
                "seen": float(np.mean(self.seen.logprobs)),
                "unseen": float(np.mean(self.unseen.logprobs)),
                "difference": as_metrics(logprob),
            },
            "given_tokens": GIVEN_TOKENS,
            "continued_tokens": self.seen.length,
        }


def draw_passages(documents: Path, tokenizer: Tokenizer, split: str, limit: int) -> list[list[int]]:
    """Return the ids of at most `limit` passages of k + m tokens, one per document, from a file of data/clean.

    The documents whose hashed ids are smallest come first; those that are too short are passed over. Where in its
    document a passage begins is a matter of the hash too.
    """
    length = GIVEN_TOKENS + CONTINUED_TOKENS
    ranked = heapq.nsmallest(
        SPARE * limit,
        (
            (hash_id("memorisation", row["id"]), row["text"])
            for row in iter_rows(documents, ["id", "text", "split"])
            if row["split"] == split
        ),
    )
    passages: list[list[int]] = []
    for name, text in ranked:
        ids = tokenizer.encode(text)
        if len(ids) >= length and len(passages) < limit:
            start = int(hash_share("start", name) * (len(ids) - length + 1))
            passages.append(ids[start : start + length])
    return passages


def recite(model: Transformer, passages: Sequence[Sequence[int]]) -> Recital:
    """Return what the model makes of passages of more than k tokens, all of one length. Raises ValueError otherwise."""
    length = len(passages[0]) - GIVEN_TOKENS if passages else 0
    if length < 1 or any(len(passage) != GIVEN_TOKENS + length for passage in passages):
        raise ValueError(f"{len(passages)} passages: need some, of one length above {GIVEN_TOKENS} tokens")
    begun = [passage[:GIVEN_TOKENS] for passage in passages]
    written = generate(model, begun, max_new_tokens=length, temperature=0.0, stop_ids=())
    prefixes = [
        count_prefix(one.tokens, passage[GIVEN_TOKENS:]) for one, passage in zip(written, passages, strict=True)
    ]
    logprobs = score(model, passages, [GIVEN_TOKENS] * len(passages))
    return Recital(prefixes, [float(np.mean(row)) for row in logprobs], length)


def measure_memorisation(
    model: Transformer, seen: Sequence[Sequence[int]], unseen: Sequence[Sequence[int]]
) -> Memorisation:
    """Return what the model recites of both; the passages are `draw_passages` of the splits train and val."""
    return Memorisation(recite(model, seen), recite(model, unseen))


def count_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common before they differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
