"""The training loop: batches in, trained weights out, and nothing lost when it is killed.

Data order and learning rate are functions of the step, and a checkpoint holds the fp32 weights and the
optimiser's state: a resumed run takes the same steps and ends in the same bytes as an uninterrupted one. A longer
run goes on from the stable phase of a shorter one, and ends in the bytes of a fresh run of its length.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from llm.config import Base, ConfigError
from llm.data.loader import prefetch
from llm.train.checkpoint import keep_only
from llm.train.early_stop import EarlyStop
from llm.train.meter import Meter, profile_steps
from llm.train.optimiser import NonFiniteError
from llm.train.schedule import ScheduleConfig, count_stable_steps, is_prefix, lr_scale
from llm.train.stop import listen_for_stop

log = logging.getLogger(__name__)
Trace = list[dict[str, float]]
B = TypeVar("B", contravariant=True)


class LoopConfig(ScheduleConfig):
    """What every training stage shares."""

    steps: int = Field(ge=1, le=10**8, description="optimiser steps")
    lr: float = Field(0.01, gt=0, le=1, description="peak learning rate")
    log_every: int = Field(10, ge=1, description="steps between points of the learning curve")
    checkpoint_every: int = Field(50, ge=1, description="most steps between checkpoints in .scratch")
    checkpoint_minutes: float = Field(5.0, gt=0, description="most minutes between checkpoints in .scratch")


class Engine(Protocol[B]):
    """Turns a batch into one optimiser step; local, or over several workers."""

    def step(self, batch: B, lr_scale: float) -> Mapping[str, Tensor | float]:
        """Return `loss` [nats], `grad` (norm) and what else the curve shows.

        Raises NonFiniteError before any weight changes.
        """

    def save(self, folder: Path, step: int, extra: dict[str, Any], keep: int) -> None:
        """Write a checkpoint that a resumed run can start from; drop old ones, but not that of step `keep`."""

    def load(self, folder: Path, fits: Callable[[int, dict[str, Any]], bool]) -> tuple[int, dict[str, Any]] | None:
        """Take over the newest intact checkpoint that fits; return its step and `extra`, or None."""

    def agree(self, wish: bool) -> bool:
        """Return whether any worker wishes so; the same answer everywhere."""


class Trained(NamedTuple):
    """The learning curve, and what this process cost."""

    trace: Trace
    cost: dict[str, float]


def train(
    engine: Engine[B],
    batch_of: Callable[[int], B],
    config: LoopConfig,
    base: Base,
    scratch: Path | None,
    meter: Meter | None = None,
    documents_of: Callable[[int], Sequence[str]] = lambda step: (),
    on_log: Callable[[dict[str, float]], None] | None = None,
    held_out: EarlyStop | None = None,
) -> Trained:
    """Run or resume `config.steps` steps, fewer where the held-out loss says stop.

    Args:    batch_of: the batch of a step, a pure function.  scratch: where checkpoints live; None keeps none.
             meter: rates for the log lines.  documents_of: ids of what a step reads, for the error that stops there.
             on_log: told of each point of the learning curve.  held_out: asked after each step.
    Returns: the whole learning curve, also what earlier processes took part in.
    Raises:  ConfigError: a loss or gradient that is no number, or too little memory.  SystemExit: after SIGTERM,
             when the step has ended and a checkpoint is written; KeyboardInterrupt likewise.
    """
    first, trace = resume(engine, config, scratch, held_out)
    branch = count_stable_steps(config.steps, config)
    last = first if held_out is not None and held_out.stopped else config.steps
    meter = meter or Meter(config.steps, base)
    meter.start(first)
    saved_at = time.monotonic()
    with listen_for_stop() as stop, profile_steps(first, scratch) as next_step:
        for step, batch in prefetch(batch_of, first, last):
            with explained(step, documents_of):
                values = engine.step(batch, scale := lr_scale(step, config.steps, config))
            done, lr = step + 1, config.lr * scale
            meter.tick(done, lr, values)
            ended = ask(held_out, done) or done == config.steps
            if done % config.log_every == 0 or ended:
                rounded = {name: round(float(value), 5) for name, value in values.items()}
                trace.append({"step": done, "lr": lr, **rounded})
                if on_log is not None:
                    on_log(trace[-1])
            due = done % config.checkpoint_every == 0 or done == branch or ended or bool(stop)
            due = due or time.monotonic() - saved_at > 60 * config.checkpoint_minutes
            if scratch is not None and engine.agree(due):
                curve = [] if held_out is None else held_out.curve
                extra = {"trace": trace, "schedule": describe_schedule(config), "held_out": curve}
                engine.save(scratch, done, extra, branch)
                saved_at = time.monotonic()
            if stop:
                raise stop.exception()
            if ended:
                break
            next_step()
    return Trained(trace, meter.cost())


def ask(held_out: EarlyStop | None, done: int) -> bool:
    """Return whether the held-out loss says stop after step `done`."""
    if held_out is None:
        return False
    held_out.observe(done)
    return held_out.stopped


def resume(
    engine: Engine[B], config: LoopConfig, scratch: Path | None, held_out: EarlyStop | None = None
) -> tuple[int, Trace]:
    """Return the step and learning curve to go on from; `held_out` takes its own curve over.

    A checkpoint fits when the rates of its steps are those of this run: one from the decay of a shorter run does not.
    """

    def fits(step: int, extra: dict[str, Any]) -> bool:
        then = LoopConfig.model_validate(extra["schedule"])
        return step <= config.steps and is_prefix(step, (then.steps, then), (config.steps, config))

    if scratch is None or (found := engine.load(scratch, fits)) is None:
        return 0, []
    step, extra = found
    if held_out is not None:
        held_out.curve = extra["held_out"]
    length = extra["schedule"]["steps"]
    log.info("resumed at step %d%s", step, "" if length == config.steps else f" of a run of {length} steps")
    return step, extra["trace"]


def describe_schedule(config: LoopConfig) -> dict[str, float]:
    """Return what the rates of a run depend on."""
    return {"steps": config.steps, "warmup_steps": config.warmup_steps, "decay": config.decay}


def finish(config: LoopConfig, scratch: Path) -> None:
    """Keep of a run that has ended what a longer one can go on from: its last checkpoint before the decay."""
    keep_only(scratch, count_stable_steps(config.steps, config))


@contextmanager
def explained(step: int, documents_of: Callable[[int], Sequence[str]]) -> Iterator[None]:
    """Turn the faults of a step into errors that say what to do."""
    try:
        yield
    except NonFiniteError as error:
        documents = ", ".join(dict.fromkeys(documents_of(step)))
        raise NonFiniteError(f"step {step + 1}: {error}. Its documents: {documents or 'not known'}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"step {step + 1} does not fit into memory: lower pretrain.micro_batch (rows per pass; the same step in "
            f"more passes), set pretrain.checkpoint_activations: true, or lower pretrain.context ({error})"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Say whether torch could not allocate; the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
