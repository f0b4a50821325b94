"""The training loop: batches in, trained weights out, and nothing lost when it is killed.

Data order and learning rate are functions of the step, and a checkpoint holds the fp32 weights and the
optimiser's state: a resumed run takes the same steps and ends in the same bytes as an uninterrupted one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from llm.config import Base, ConfigError
from llm.data.loader import IGNORE, Batch
from llm.model.flops import flops_per_token, measure_ceiling
from llm.model.transformer import Transformer
from llm.train.checkpoint import load_checkpoint, save_checkpoint
from llm.train.loss import next_token_loss
from llm.train.optimiser import Optimiser, OptimiserConfig
from llm.train.schedule import ScheduleConfig, lr_scale

log = logging.getLogger(__name__)
LOG_SECONDS = 5.0
Trace = list[dict[str, float]]


class TrainConfig(OptimiserConfig, ScheduleConfig):
    """What both training stages share."""

    steps: int = Field(ge=1, le=10**8, description="optimiser steps")
    batch_size: int = Field(ge=1, le=1 << 16, description="sequences per step, over all workers")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints in .scratch")
    log_every: int = Field(10, ge=1, description="steps between points of the learning curve")


class Engine(Protocol):
    """Turns a batch into one optimiser step; local, or DeepSpeed over several workers."""

    def step(self, batch: Batch, lr_scale: float) -> tuple[float, float]:
        """Return (loss in nats, gradient norm)."""

    def save(self, folder: Path, step: int, trace: Trace) -> None:
        """Write a checkpoint that a resumed run can start from."""

    def load(self, folder: Path) -> tuple[int, Trace] | None:
        """Take over the newest intact checkpoint; return its step and learning curve, or None."""


class LocalEngine:
    """One process: forward and backward in base.dtype, the step in fp32."""

    def __init__(self, model: Transformer, config: OptimiserConfig, compile: bool = False):
        self.model = model
        self.optimiser = Optimiser(model, config)
        if compile:  # compiled sums repeat over two threads only under deterministic algorithms
            torch.use_deterministic_algorithms(True)
            self.model.compile()

    def step(self, batch: Batch, lr_scale: float) -> tuple[float, float]:
        loss = model_loss(self.model, batch)
        value = float(loss.detach())
        check_finite(value)
        loss.backward()
        return value, self.optimiser.step(lr_scale)

    def save(self, folder: Path, step: int, trace: Trace) -> None:
        save_checkpoint(folder, step, self.optimiser.state(), {"trace": trace})

    def load(self, folder: Path) -> tuple[int, Trace] | None:
        if (found := load_checkpoint(folder)) is None:
            return None
        step, state, extra = found
        self.optimiser.load(state)
        return step, extra["trace"]

    def restore_masters(self) -> None:
        """Turn the model into fp32 with the master weights, for saving."""
        self.model.float()
        with torch.no_grad():
            for parameter, master in zip(self.model.parameters(), self.optimiser.masters, strict=True):
                parameter.copy_(master)


class Trained(NamedTuple):
    """The learning curve, and what this process cost."""

    trace: Trace
    cost: dict[str, float]


def train(
    engine: Engine,
    model: Transformer,
    batch_of: Callable[[int], Batch],
    config: TrainConfig,
    base: Base,
    scratch: Path | None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    """Run or resume `config.steps` steps.

    Args:    batch_of: the batch of a step, a pure function.  scratch: where checkpoints live; None keeps none.
             on_log: told of each point of the learning curve.
    Returns: the whole learning curve, also what earlier processes took part in.
    """
    first, trace = 0, Trace()
    if scratch is not None and (found := engine.load(scratch)) is not None:
        first, trace = found
        log.info("resumed at step %d", first)
    meter = Meter(model, config, base, first)
    for step in range(first, config.steps):
        batch = batch_of(step)
        loss, grad = engine.step(batch, scale := lr_scale(step, config.steps, config))
        point = {"step": step + 1, "loss": round(loss, 5), "lr": config.lr * scale, "grad": round(grad, 5)}
        meter.tick(point, int(batch.tokens.numel()))
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            trace.append(point)
            if on_log is not None:
                on_log(point)
        if scratch is not None and (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            engine.save(scratch, step + 1, trace)
    return Trained(trace, meter.cost())


def model_loss(model: Transformer, batch: Batch) -> Tensor:
    """Return the mean next-token loss of a batch."""
    head = model.embedding if model.head is None else model.head
    return next_token_loss(model(batch.tokens), head.weight, batch.targets)


@torch.no_grad()
def evaluate_loss(model: Transformer, batches: Sequence[Batch]) -> float | None:
    """Return the mean loss in nats per learned token, or None without batches."""
    total = count = 0.0
    for batch in batches:
        learned = float((batch.targets != IGNORE).sum())
        total += float(model_loss(model, batch)) * learned
        count += learned
    return round(total / count, 5) if count else None


def check_finite(loss: float) -> None:
    """Raise before the optimiser step when the loss is no number."""
    if not torch.isfinite(torch.tensor(loss)):
        raise ConfigError(f"the loss is {loss}: lower lr, or use base.dtype: fp32. The last checkpoint is kept")


class Meter:
    """Progress lines, and tokens per second, MFU and ETA for them."""

    def __init__(self, model: Transformer, config: TrainConfig, base: Base, first: int):
        self.steps, self.first = config.steps, first
        self.flops_per_token = flops_per_token(model.config)
        self.ceiling = measure_ceiling(base.torch_dtype)
        self.started = self.last = time.monotonic()
        self.tokens = 0
        log.info(
            "%.2fM parameters, %d steps; matrix products reach %.0f GFLOP/s in %s",
            sum(p.numel() for p in model.parameters()) / 1e6, config.steps, self.ceiling / 1e9, base.dtype,
        )  # fmt: skip

    def tick(self, point: dict[str, Any], tokens: int) -> None:
        """Count a step and log a line every few seconds."""
        self.tokens += tokens
        now = time.monotonic()
        if now - self.last < LOG_SECONDS and point["step"] not in (self.first + 1, self.steps):
            return
        self.last = now
        rate = self.tokens / (now - self.started)
        left = (self.steps - point["step"]) * (now - self.started) / (point["step"] - self.first)
        log.info(
            "step %d/%d | loss %.3f | lr %.1e | grad %.2f | %.1fk tok/s | mfu %.0f%% | eta %02d:%02d",
            point["step"], self.steps, point["loss"], point["lr"], point["grad"], rate / 1e3,
            100 * rate * self.flops_per_token / self.ceiling, left // 60, left % 60,
        )  # fmt: skip

    def cost(self) -> dict[str, float]:
        """Return rates of this process for reports/runs."""
        rate = self.tokens / max(time.monotonic() - self.started, 1e-9)
        mfu = rate * self.flops_per_token / self.ceiling
        return {"tokens_per_s": round(rate, 1), "mfu": round(mfu, 3), "ceiling_gflops": round(self.ceiling / 1e9, 1)}
