"""Warm-up, stable, decay.

Warm-up is a number of steps and not a share, so that until the decay begins the rate does not depend on the length
of the run: a longer run goes on from the stable phase of a shorter one.
"""

from pydantic import Field

from llm.config import BaseParams


class ScheduleConfig(BaseParams):
    """What is left between warm-up and decay is stable."""

    warmup_steps: int = Field(10, ge=0, le=10**7, description="steps that raise the rate linearly")
    decay: float = Field(0.5, ge=0, le=1, description="share of the steps that lower it linearly towards zero")


def lr_scale(step: int, steps: int, config: ScheduleConfig) -> float:
    """Return the factor in (0, 1] on the peak rate at `step` (0-based).

    Source: warm-up-stable-decay, arXiv:2404.06395. Differs: linear decay to 1/(decay steps), not to a floor.
    """
    return min(1.0, (step + 1) / max(1, config.warmup_steps), (steps - step) / _decay_steps(steps, config))


def count_stable_steps(steps: int, config: ScheduleConfig) -> int:
    """Return how many first steps are the same in every longer run."""
    return steps - _decay_steps(steps, config) + 1


def is_prefix(step: int, one: tuple[int, ScheduleConfig], other: tuple[int, ScheduleConfig]) -> bool:
    """Say whether two schedules, each (steps, config), have the same rates in their first `step` steps."""
    return all(lr_scale(i, *one) == lr_scale(i, *other) for i in range(step))


def _decay_steps(steps: int, config: ScheduleConfig) -> int:
    return max(1, round(steps * config.decay))
