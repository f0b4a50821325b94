"""What a changed model (rounded, pruned, converted) keeps of the original: paired figures with intervals.

Both answer the same items: held-out documents, text that the original itself wrote, next tokens, questions.
Intervals resample documents (and groups of questions), so that what both have in common cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm.evals.statistics import Interval, as_metrics, clustered_interval, ratio_interval

Logprobs = Sequence[Sequence[float]]
Figures = dict[str, dict[str, float | int]]


@dataclass(frozen=True)
class Items:
    """Bytes of each document and of each text of the original's own; document of each position; question groups."""

    text_bytes: list[int]
    own_bytes: list[int]
    documents: list[int]
    groups: list[str]


@dataclass(frozen=True)
class Answers:
    """What one model said: log-probabilities [nats] of both texts' tokens, greedy tokens, credit per question."""

    text: Logprobs
    own: Logprobs
    greedy: Sequence[int]
    credit: Sequence[float]


def describe_level(answers: Answers, original: Answers, items: Items) -> Figures:
    """Return a model's figures, each with its 95 % interval.

    Returns: bits_per_byte of the documents; agreement, the share of the original's greedy tokens; accuracy on the
             questions (left out without any); and against the original `text_loss` and `own_text_loss` [bits per
             byte] and accuracy_change, all three paired.
    """
    nothing = [[0.0]] * len(items.text_bytes)
    found = {
        "bits_per_byte": lose_bits(answers.text, nothing, items.text_bytes),
        "agreement": clustered_interval(match(answers.greedy, original.greedy), items.documents),
        "text_loss": lose_bits(answers.text, original.text, items.text_bytes),
        "own_text_loss": lose_bits(answers.own, original.own, items.own_bytes),
    }
    if items.groups:
        change = [ours - before for ours, before in zip(answers.credit, original.credit, strict=True)]
        found["accuracy"] = clustered_interval(answers.credit, items.groups)
        found["accuracy_change"] = clustered_interval(change, items.groups)
    return _round(found)


def compare_levels(ours: Answers, theirs: Answers, original: Answers, items: Items) -> Figures:
    """Return ours - theirs, paired: bits per byte of both texts, and agreement with the original."""
    gained = zip(match(ours.greedy, original.greedy), match(theirs.greedy, original.greedy), strict=True)
    return _round(
        {
            "text": lose_bits(ours.text, theirs.text, items.text_bytes),
            "own_text": lose_bits(ours.own, theirs.own, items.own_bytes),
            "agreement": clustered_interval([one - other for one, other in gained], items.documents),
        }
    )


def lose_bits(ours: Logprobs, theirs: Logprobs, num_bytes: Sequence[int]) -> Interval:
    """Return how many more bits per byte ours needs than theirs, resampling documents.

    Args:    ours, theirs: log-probabilities [nats] of each document's tokens.  num_bytes: of each document.
    Returns: sum over documents of (sum theirs - sum ours) / (ln 2 * sum of bytes); positive where ours is worse.
    """
    lost = [(math.fsum(b) - math.fsum(a)) / math.log(2) for a, b in zip(ours, theirs, strict=True)]
    return ratio_interval(lost, num_bytes)


def match(tokens: Sequence[int], reference: Sequence[int]) -> list[float]:
    """Return 1 for each position at which both picked the same token, else 0."""
    return [float(a == b) for a, b in zip(tokens, reference, strict=True)]


def _round(found: dict[str, Interval]) -> Figures:
    """Six digits: the last ones of a log-probability depend on the machine."""
    return {name: {k: round(v, 6) for k, v in as_metrics(interval).items()} for name, interval in found.items()}
