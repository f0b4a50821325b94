"""Plan a training run: which layout fits on given GPUs and is fastest, what each rank holds, how long it takes.

    python -m llm.train.plan --preset 30b --gpus 64 --gpu h200
    python -m llm.train.plan --preset small --gpu cpu             the machine at hand: times are measured on slices
    python -m llm.train.plan --preset 7b --gpus 8 --gpu a100-40 --json

Batch and budget come from the dial (llm/train/dial.py) unless given. Several GPUs train with AdamW; on one GPU Muon
takes the hidden matrices. Memory is counted (llm/train/footprint.py); times on GPUs are modelled, not measured.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from llm.config import ConfigError, require
from llm.model.presets import PRESETS
from llm.train.dial import turn_dial
from llm.train.footprint import Footprint, Job, measure_footprint
from llm.train.hardware import DEVICES, Device, measure_cpu
from llm.train.layout import Layout
from llm.train.probe import estimate_step_here
from llm.train.step_time import StepTime, count_model_flops, estimate_step

USABLE = 0.92  # of a GPU's memory; allocators leave gaps
CLOSE = 1.02  # of two layouts as near as this in time the simpler one is taken
MAX_MICRO_BATCH = 64
BUSY_TOKENS = 16_384  # tokens of a pass with which any of the GPUs is busy
MOST_GPUS = 16_384


class Plan(NamedTuple):
    """One layout with what it costs."""

    job: Job
    device: Device
    layout: Layout
    footprint: Footprint
    time: StepTime

    @property
    def fits(self) -> bool:
        """Whether the fullest rank has room."""
        return self.footprint.total <= USABLE * self.device.memory

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the whole job per second."""
        return self.job.batch_size * self.job.context / self.time.total

    @property
    def days(self) -> float:
        """Days for the job's tokens."""
        return self.job.tokens / self.tokens_per_s / 86_400

    @property
    def mfu(self) -> float:
        """Share of the devices' peak that the model's own FLOPs take."""
        return count_model_flops(self.job) / self.time.total / (self.device.flops * self.layout.workers)


def plan_layout(job: Job, layout: Layout, device: Device) -> Plan:
    """Return what one layout costs."""
    return Plan(job, device, layout, measure_footprint(job, layout, True), estimate_step(job, layout, device))


def choose_layout(job: Job, gpus: int, device: Device) -> Plan:
    """Return the fastest plan that fits; of those that are about as fast the one that shards least.

    Raises ConfigError, with the largest part and the remedy, when none fits.
    """
    plans = [plan_layout(job, layout, device) for layout in list_layouts(job, gpus, device)]
    require(
        bool(plans),
        f"{gpus} GPUs cannot share a batch of {job.batch_size} sequences evenly: "
        f"choose a number of GPUs that divides it, or give --batch-size",
    )
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        raise ConfigError(_explain(min(plans, key=lambda plan: plan.footprint.total), gpus))
    fastest = min(plan.time.total for plan in fitting)
    return min((plan for plan in fitting if plan.time.total <= CLOSE * fastest), key=_complexity)


def list_layouts(job: Job, gpus: int, device: Device) -> Iterator[Layout]:
    """Yield every layout that the engines can run.

    Tensor ranks stay within a node, whose links are fast enough; with them, or a pipeline, a micro-batch is one
    sequence and FSDP2 shards the rest. Otherwise it is ZeRO 0 to 3.
    """
    shape = job.shape
    for t in _powers(min(gpus, device.per_node)):
        if any(size % t for size in (shape.num_heads, shape.num_kv_heads, shape.mlp_size, shape.vocab_size)):
            continue
        for p in _powers(min(gpus // t, shape.num_layers)):
            ranks = gpus // (t * p)
            if gpus % (t * p) or shape.num_layers % p or job.batch_size % ranks:
                continue
            sharded = t * p > 1
            for checkpointing in (False, True):
                for micro in [1] if sharded else _powers(min(MAX_MICRO_BATCH, job.batch_size // ranks)):
                    for stage in [1] if sharded else [0] if gpus == 1 else [0, 1, 2, 3]:
                        yield Layout(gpus, stage, t, p, micro, checkpointing)


def _powers(limit: int) -> list[int]:
    return [2**k for k in range(limit.bit_length()) if 2**k <= limit]


def _complexity(plan: Plan) -> tuple[float, ...]:
    layout = plan.layout
    busy = min(BUSY_TOKENS, layout.micro_batch * plan.job.context)
    sharing = (layout.pipeline_parallel, layout.tensor_parallel, layout.checkpointing, layout.zero_stage)
    return (*sharing, -busy, plan.footprint.total)


def _explain(least: Plan, gpus: int) -> str:
    """Return why nothing fits: the leanest layout, its largest part, and how many GPUs would do."""
    job, device = least.job, least.device
    part, size = max(least.footprint._asdict().items(), key=lambda one: one[1])
    words = (
        f"nothing fits: the leanest layout on {gpus} x {device.name} ({describe_layout(least.layout)}) needs "
        f"{least.footprint.total / 1e9:.1f} GB a GPU, and {USABLE * device.memory / 1e9:.1f} of "
        f"{device.memory / 1e9:.0f} GB can be used; most of it is {part} ({size / 1e9:.1f} GB). "
    )
    more = gpus
    while more < MOST_GPUS:
        more *= 2
        plans = [plan_layout(job, layout, device) for layout in list_layouts(job, more, device)]
        if any(plan.fits for plan in plans):
            return words + f"Remedy: {more} such GPUs, or GPUs with more memory, or a smaller preset"
    return words + "Remedy: GPUs with more memory, a shorter context, or a smaller preset; more of these do not help"


def plan_here(job: Job) -> Plan:
    """Return the plan of one process on this machine; its step time is measured on slices of the model."""
    layouts = [Layout(micro_batch=micro, checkpointing=c) for c in (False, True) for micro in _powers(job.batch_size)]
    device = measure_cpu()
    fitting = [
        (layout, footprint)
        for layout in layouts
        if (footprint := measure_footprint(job, layout, False)).total <= USABLE * device.memory
    ]
    require(bool(fitting), f"nothing fits into the {device.memory / 1e9:.0f} GB of this machine: take a smaller preset")
    # the largest micro-batch without recomputation: every pass pays for gathering gradients in fp32
    layout, footprint = max(fitting, key=lambda one: (not one[0].checkpointing, one[0].micro_batch))
    seconds = estimate_step_here(job) * (4 / 3 if layout.checkpointing else 1)
    return Plan(job, device, layout, footprint, StepTime(products=seconds))


def describe_layout(layout: Layout) -> str:
    """Return a layout in words."""
    if layout.is_sharded:
        how = f"tensor {layout.tensor_parallel}, pipeline {layout.pipeline_parallel}, FSDP over {layout.ranks}"
    else:
        how = f"ZeRO {layout.zero_stage} over {layout.workers}" if layout.workers > 1 else "one process"
    kept = "blocks recomputed" if layout.checkpointing else "activations kept"
    return f"{how}, micro-batch {layout.micro_batch}, {kept}"


def as_report(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON; bytes, seconds and tokens."""
    job = plan.job
    return {
        "gpu": plan.device.name,
        "gpu_source": plan.device.source,
        "layout": {**plan.layout._asdict(), "passes": job.passes(plan.layout)},
        "optimiser": job.optimiser,
        "batch_size": job.batch_size,
        "context": job.context,
        "tokens": job.tokens,
        "bytes_per_rank": {**plan.footprint._asdict(), "total": plan.footprint.total},
        "usable_bytes": USABLE * plan.device.memory,
        "step_s": {**plan.time._asdict(), "total": plan.time.total},
        "tokens_per_s": plan.tokens_per_s,
        "mfu": plan.mfu,
        "days": plan.days,
        "measured": plan.device.name == "cpu",
    }


def show(plan: Plan, title: str) -> None:
    """Print a plan as tables."""
    from rich.console import Console
    from rich.table import Table

    console, job = Console(), plan.job
    console.print(f"[bold]{title}[/bold]: {describe_layout(plan.layout)}")
    console.print(
        f"batch {job.batch_size} x {job.context} tokens in {job.passes(plan.layout)} passes a rank, "
        f"{job.tokens / 1e9:.2f}G tokens, {job.optimiser}"
    )
    memory = Table("memory of one rank", "GB", title_justify="left")
    for name, size in (*plan.footprint._asdict().items(), ("total", plan.footprint.total)):
        memory.add_row(name, f"{size / 1e9:.2f}")
    memory.add_row("usable", f"{USABLE * plan.device.memory / 1e9:.2f}")
    times = Table("time of one step", "s")
    for name, seconds in (*plan.time._asdict().items(), ("total", plan.time.total)):
        if seconds:
            times.add_row(name, f"{seconds:.3f}")
    console.print(memory, times)
    kind = "measured on slices of the model" if plan.device.name == "cpu" else "modelled, not measured"
    console.print(f"{plan.tokens_per_s:,.0f} tokens/s, MFU {plan.mfu:.0%}, {plan.days:.2f} days ({kind})")


def make_job(arguments: argparse.Namespace) -> Job:
    """Return the job that the command line describes."""
    shape = PRESETS[arguments.preset]
    if arguments.vocab_size:
        shape = shape.model_copy(update={"vocab_size": arguments.vocab_size})
    context = arguments.context or shape.context
    optimiser: Literal["muon", "adamw"] = "muon" if arguments.gpus == 1 else "adamw"
    settings = turn_dial(shape, context, optimiser, arguments.batch_size)
    return Job(shape, context, settings.batch_size, arguments.tokens or settings.tokens, optimiser)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, choices=PRESETS)
    parser.add_argument("--gpus", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--gpu", default="h100", choices=[*DEVICES, "cpu"], help="which; cpu: the machine at hand")
    parser.add_argument("--vocab-size", type=int, help="entries of the tokenizer (default: the preset's)")
    parser.add_argument("--context", type=int, help="tokens per sequence (default: the preset's)")
    parser.add_argument("--batch-size", type=int, help="sequences per step (default: by the dial)")
    parser.add_argument("--tokens", type=int, help="tokens in all (default: by the dial, 20 per parameter)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        job = make_job(arguments)
        here = arguments.gpu == "cpu"
        require(not here or arguments.gpus == 1, "--gpu cpu is this machine alone: leave --gpus out")
        plan = plan_here(job) if here else choose_layout(job, arguments.gpus, DEVICES[arguments.gpu])
    except ConfigError as error:
        sys.exit(str(error))
    if arguments.json:
        print(json.dumps(as_report(plan), indent=1))
    else:
        show(plan, f"{arguments.preset} on {arguments.gpus} x {plan.device.name}")


if __name__ == "__main__":
    main()
