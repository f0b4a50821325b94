"""The held-out loss along a run: its curve, when it says stop, and which step's weights it keeps.

All three follow from the curve alone, so a resumed run needs no more state than the curve and the weights kept.
The learning rate stays a function of the step: a run that stops early has not finished its decay.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Self

from pydantic import Field, model_validator

from llm.config import BaseParams

log = logging.getLogger(__name__)


class EarlyStopConfig(BaseParams):
    """When the held-out loss is measured, and when it ends a run."""

    eval_every: int = Field(0, ge=0, description="steps between held-out losses; 0: none along the way")
    patience: int = Field(
        0, ge=0, description="held-out losses without an improvement that end a run, and the best weights stay; 0: off"
    )
    min_improvement: float = Field(0.0, ge=0, description="nats; a loss that is lower by no more is no improvement")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.patience and not self.eval_every:
            raise ValueError("patience counts held-out losses, so eval_every must be at least 1")
        return self


class EarlyStop:
    """Measures the held-out loss when it is due; `keep` is called when it is the lowest so far and patience is on."""

    def __init__(
        self, config: EarlyStopConfig, steps: int, evaluate: Callable[[], float | None], keep: Callable[[], None]
    ):
        self.config, self.steps, self.evaluate, self.keep = config, steps, evaluate, keep
        self.curve: list[dict[str, float]] = []

    def observe(self, done: int) -> None:
        """Measure after step `done` if it is due."""
        every = self.config.eval_every
        if not every or (done % every and done != self.steps):
            return
        loss = self.evaluate()
        assert loss is not None, "sft.eval_every without held-out data"
        lowest = loss < min((point["loss"] for point in self.curve), default=math.inf)
        self.curve.append({"step": done, "loss": loss})
        if self.config.patience and lowest:
            self.keep()
        log.info("held-out loss %.4f at step %d%s", loss, done, ", the lowest so far" if lowest else "")
        if self.stopped:
            log.info(
                "stopped at step %d: no improvement in %d held-out losses; the weights of step %d are kept",
                done, self.config.patience, self.kept_step,
            )  # fmt: skip

    @property
    def stopped(self) -> bool:
        """Say whether the run is to end."""
        losses = [point["loss"] for point in self.curve]
        return 0 < self.config.patience <= count_stale(losses, self.config.min_improvement)

    @property
    def kept_step(self) -> int:
        """Return the step whose weights the run leaves behind."""
        if self.config.patience and self.curve:
            return int(min(self.curve, key=lambda point: point["loss"])["step"])
        return self.steps


def count_stale(losses: Sequence[float], min_improvement: float) -> int:
    """Return how many losses came since the last improvement: one lower by more than `min_improvement`."""
    best, stale = math.inf, 0
    for loss in losses:
        if loss < best - min_improvement:
            best, stale = loss, 0
        else:
            stale += 1
    return stale
