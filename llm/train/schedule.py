"""Warm-up, stable, decay."""

from pydantic import Field

from llm.config import BaseParams


class ScheduleConfig(BaseParams):
    """Shares of the run; what is left between warm-up and decay is stable."""

    warmup: float = Field(0.02, ge=0, lt=1, description="share of the steps that raise the rate linearly")
    decay: float = Field(0.5, ge=0, le=1, description="share of the steps that lower it linearly towards zero")


def lr_scale(step: int, steps: int, config: ScheduleConfig) -> float:
    """Return the factor in (0, 1] on the peak rate at `step` (0-based).

    Source: warm-up-stable-decay, arXiv:2404.06395. Differs: linear decay to 1/(decay steps), not to a floor.
    """
    warmup = max(1, round(steps * config.warmup))
    decay = max(1, round(steps * config.decay))
    return min(1.0, (step + 1) / warmup, (steps - step) / decay)
