"""A policy on fixed prompts: what a policy that is kept has to fulfil, and what stops a run that has gone astray."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import pstdev
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from llm.config import BaseParams
from llm.rl.reward_model import PRINCIPLES

# A kept policy must lie within the bounds on other prompts too: a mean over some dozens of answers is that uncertain.
KL_ROOM = 0.85
COST_ROOM = 0.5
DISTINCT_ROOM = 0.85
CONSTANT_LIMIT = 0.35  # what answers half of the harmless prompts counts as no answer in the evaluation
RECENT = 5  # steps whose mean reward says that it has collapsed


class CostBounds(BaseParams):
    """The largest mean probability of a bad answer, per principle."""

    beneficence: float = Field(0.2, gt=0, lt=1)
    non_maleficence: float = Field(0.2, gt=0, lt=1)
    autonomy: float = Field(0.2, gt=0, lt=1)
    justice: float = Field(0.2, gt=0, lt=1)


class Bounds(BaseParams):
    """What a policy that is kept may not exceed."""

    kl_bound: float = Field(8.0, gt=0, description="largest mean KL to sft, nats per answer")
    cost_bounds: CostBounds = Field(CostBounds(), description="largest mean cost of each principle")
    length_tolerance: float = Field(0.1, gt=0, lt=1, description="largest relative change of mean length")


@dataclass(frozen=True)
class Check:
    """A policy on fixed prompts, with common random numbers."""

    rewards: list[float]  # of each answer
    kl: float
    length: float
    distinct: float  # share of different answers to prompts of no principle
    cost: dict[str, float]  # mean per principle that the prompts hold
    constant: float = 0.0  # share of harmless prompts that get the most common answer

    @property
    def reward(self) -> float:
        return sum(self.rewards) / len(self.rewards)

    def faults(self, reference: "Check", bounds: Bounds, constrained: bool = True) -> list[str]:
        """Return the names of what keeps this policy from being kept; `constrained`: costs count too."""
        over = {
            "kl": self.kl > KL_ROOM * bounds.kl_bound,
            "length": abs(self.length / reference.length - 1.0) > bounds.length_tolerance,
            "distinct": self.distinct < DISTINCT_ROOM * reference.distinct,
            "constant": self.constant > max(CONSTANT_LIMIT, reference.constant),
        }
        limits = bounds.cost_bounds.model_dump()
        if constrained:
            over |= {f"cost.{name}": value > COST_ROOM * limits[name] for name, value in self.cost.items()}
        return [name for name, is_over in over.items() if is_over]

    def excess(self, bounds: Bounds) -> float:
        """Return by how much the costs exceed what a kept policy may have, summed over principles."""
        limits: dict[str, float] = bounds.cost_bounds.model_dump()
        return sum(max(0.0, value - COST_ROOM * limits[name]) for name, value in self.cost.items())

    def to_json(self) -> dict[str, Any]:
        """Return the check as a checkpoint holds it."""
        return asdict(self)


def average_costs(cost_BP: Tensor, principles: Sequence[str | None]) -> dict[str, float]:
    """Return the mean cost by each principle over the answers to its own prompts."""
    found = {}
    for column, name in enumerate(PRINCIPLES):
        own = torch.tensor([principle == name for principle in principles])
        if bool(own.any()):
            found[name] = cost_BP[own, column].mean().item()
    return found


class RunawayError(RuntimeError):
    """Training has left every sensible range; what was kept before is still good."""


def stop_runaway(points: Sequence[Mapping[str, float]], reference: Check, bounds: Bounds) -> None:
    """Raise RunawayError when KL, length or entropy of the last rollout have run away, or rewards have collapsed.

    Args: points: the trace so far.  reference: check of sft.
    """
    point, entropy = points[-1], points[0]["entropy"]
    recent = [one["reward"] for one in points[-RECENT:]]
    floor = reference.reward - 2 * pstdev(reference.rewards)
    if len(recent) == RECENT and sum(recent) / RECENT < floor:
        raise RunawayError(
            f"the mean reward of {RECENT} steps is {sum(recent) / RECENT:.2f}, two standard deviations under sft's "
            f"{reference.reward:.2f}: lower rlhf.lr or rlhf.multiplier_limit"
        )
    if point["kl"] > 10 * bounds.kl_bound:
        raise RunawayError(f"KL is {point['kl']:.1f}, ten times rlhf.kl_bound={bounds.kl_bound}: lower rlhf.lr")
    if point["length"] > 3 * reference.length:
        raise RunawayError(
            f"answers have {point['length']:.0f} tokens, sft's {reference.length:.0f}: raise rlhf.length_rate"
        )
    if point["entropy"] < 0.05 * entropy:
        raise RunawayError(
            f"entropy fell from {entropy:.2f} to {point['entropy']:.2f} nats: the policy says one thing only; "
            "lower rlhf.lr or raise rlhf.kl_coef"
        )
