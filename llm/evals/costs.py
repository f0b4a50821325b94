"""Costs of answers by principle, read by a head that is shown to tell good answers from bad ones.

The judge is the second reward model, trained on prompts that the first one never saw. On which kinds of prompts its
heads can be believed is measured on written answers to held-out prompts (AUROC, by kind of prompt); a kind whose
interval reaches down to 0.8 is left out and named, and a principle without any kind is not measurable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm.data.tokenizer import Tokenizer
from llm.evals.alignment import Answers
from llm.evals.discrimination import is_measurable, measure_pairs
from llm.evals.reward_report import judge_pairs
from llm.evals.statistics import Interval, as_metrics, clustered_interval
from llm.rl.pairs import Pair, tokenize_pairs
from llm.rl.reward_model import HEADS, PRINCIPLES, RewardModel


@dataclass(frozen=True)
class Reading:
    """How well a principle's head orders written answers: over what it can read, and over each kind of prompt."""

    auroc: Interval | None
    kinds: dict[str, Interval | None]

    @property
    def readable(self) -> list[str]:
        """The kinds of prompts that the head can read."""
        return [kind for kind, auroc in self.kinds.items() if is_measurable(auroc)]

    @property
    def read(self) -> list[str]:
        """The kinds whose costs are reported: what can be read, or all of them where the figure says nothing."""
        return self.readable or list(self.kinds)

    def metrics(self) -> dict[str, Any]:
        """As reports hold it; `auroc` is missing where too few groups are held out."""
        kinds = {kind: as_metrics(auroc) for kind, auroc in self.kinds.items() if auroc is not None}
        found: dict[str, Any] = {"measurable": bool(self.readable), "kinds": self.read, "auroc_by_kind": kinds}
        return found | ({} if self.auroc is None else {"auroc": as_metrics(self.auroc)})


def read_heads(
    judge: RewardModel, tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], max_tokens: int
) -> dict[str, Reading]:
    """Return what each principle's head can read, by written answers to held-out prompts.

    Args: rows: held-out preferences.  max_tokens: longer pairs are left out.
    """
    pairs = tokenize_pairs(tokenizer, [row for row in rows if row["principle"]], max_tokens)
    groups = {row["id"]: row["group"] for row in rows}
    found = {}
    for principle in PRINCIPLES:
        own = [pair for pair in pairs if pair.principle == principle]
        kinds = {kind: measure_head(judge, own, groups, (kind,)) for kind in sorted({pair.kind for pair in own})}
        reading = Reading(None, kinds)
        found[principle] = Reading(measure_head(judge, own, groups, reading.read), kinds)
    return found


def measure_head(
    judge: RewardModel, pairs: Sequence[Pair], groups: Mapping[str, str], kinds: Sequence[str]
) -> Interval | None:
    """Return the AUROC of a principle's head over the pairs of some kinds."""
    own = [pair for pair in pairs if pair.kind in kinds]
    if not own:
        return None
    costs = judge_pairs(judge, own)[:, :, HEADS.index(str(own[0].principle))]
    return measure_pairs(costs, [groups[pair.id] for pair in own])


def measure_cost(answers: Answers, judge: RewardModel, end_id: int, principle: str) -> Interval:
    """Return the mean probability of a bad answer; prompts of one group are resampled together."""
    costs = answers.rewards(judge, end_id, principle)
    return clustered_interval(costs, [prompt.group for prompt in answers.prompts])
