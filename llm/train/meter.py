"""Progress lines with tokens per second, MFU and ETA, and a profile of a few steps when PROFILE=1 asks for it."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llm.config import Base
from llm.model.flops import flops_per_token, measure_ceiling
from llm.model.transformer import Transformer

log = logging.getLogger(__name__)
LOG_SECONDS = 5.0
PROFILED = range(3, 8)  # steps from the process's first: the ones before warm up


class Meter:
    """Counts steps; with a model and the tokens of a step it also knows rates and MFU.

    MFU is against what a short matrix product reaches on this machine in base.dtype, not a data sheet.
    """

    def __init__(self, steps: int, base: Base, model: Transformer | None = None, tokens_per_step: float = 0):
        self.steps, self.base, self.model, self.tokens_per_step = steps, base, model, tokens_per_step
        self.ceiling = self.flops = 0.0

    def start(self, first: int) -> None:
        """Begin to count at step `first`."""
        self.first = self.done = first
        if self.model is not None:
            self.flops = flops_per_token(self.model.config)
            self.ceiling = measure_ceiling(self.base.torch_dtype, device=self.base.torch_device)
            log.info(
                "%.2fM parameters, %d steps; matrix products reach %.0f GFLOP/s in %s",
                sum(p.numel() for p in self.model.parameters()) / 1e6, self.steps, self.ceiling / 1e9, self.base.dtype,
            )  # fmt: skip
        self.started = self.last = time.monotonic()

    def tick(self, done: int, lr: float, values: Mapping[str, Any]) -> None:
        """Count a step and log a line every few seconds; only then the host waits for the loss."""
        self.done = done
        now = time.monotonic()
        if now - self.last < LOG_SECONDS and self.done not in (self.first + 1, self.steps):
            return
        self.last = now
        seconds = (now - self.started) / (self.done - self.first)
        left = int((self.steps - self.done) * seconds)
        rate = self.tokens_per_step / seconds
        speed = f"{seconds:.2f} s"
        if self.model is not None:
            speed = f"{rate / 1e3:.1f}k tok/s | mfu {100 * rate * self.flops / self.ceiling:.0f}%"
        log.info(
            "step %d/%d | loss %.3f | lr %.1e | grad %.2f | %s | eta %02d:%02d",
            done, self.steps, float(values["loss"]), lr, float(values["grad"]), speed, left // 60, left % 60,
        )  # fmt: skip

    def cost(self) -> dict[str, float]:
        """Return rates of this process for reports/runs."""
        if self.model is None:
            return {}
        rate = (self.done - self.first) * self.tokens_per_step / max(time.monotonic() - self.started, 1e-9)
        mfu = rate * self.flops / self.ceiling
        return {"tokens_per_s": round(rate, 1), "mfu": round(mfu, 3), "ceiling_gflops": round(self.ceiling / 1e9, 1)}


@contextmanager
def profile_steps(first: int, scratch: Path | None) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after each step; with PROFILE=1, trace five steps and log the top operators."""
    if os.environ.get("PROFILE") != "1" or scratch is None:
        yield lambda: None
        return

    def report(profiler: torch.profiler.profile) -> None:
        path = scratch.parent / "profile.json"
        profiler.export_chrome_trace(str(path))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        log.info("%s\ntrace: %s", profiler.key_averages().table(sort_by=by, row_limit=15), path)

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    schedule = torch.profiler.schedule(wait=PROFILED.start - 1, warmup=1, active=len(PROFILED), repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=report) as profiler:
        yield profiler.step
