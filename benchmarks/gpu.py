"""Training, decoding and prefill on one GPU, against what the device can reach, each checked against float32.

Needs torch, numpy, tokenizers, safetensors, pydantic and PyYAML. On the GPU machine, in the repository's root:

    export PYTHONUNBUFFERED=1
    python3 -m benchmarks.gpu --only ceiling
    python3 -m benchmarks.gpu --only train --preset small
    python3 -m benchmarks.gpu --only train --preset 1b
    python3 -m benchmarks.gpu --only decode --preset 1b
    python3 -m benchmarks.gpu --only decode --preset 7b
    python3 -m benchmarks.gpu --only decode --preset 30b

Without `--only` all of it, in that order. Every figure is saved as soon as it is taken, to
`reports/gpu/<device>.json` (`--out` names another folder), and a later call adds to that file; figures of another
torch or driver are dropped. Last line: the report as one JSON object. The exit status is 1 when a check failed.

Formulas (L layers, D hidden, H query heads, G key/value heads, K head size, M MLP, V vocabulary, B rows, T tokens of
a row; block matrices W = L D (2 H K + 2 G K + 3 M), the unembedding V D):
    training   FLOPs per token = 6 (W + V D) + 6 L H K T            llm.model.flops: causal, so half of the attention
               MFU = tokens/s x FLOPs per token / matrix ceiling; the optimiser's arithmetic takes time, but counts not
    prefill    FLOPs = B (2 W T + 2 L H K T^2 + 2 V D)              only the last position is unembedded
               of_ceiling = FLOPs / s / matrix ceiling
    decode     bytes per step = 2 (W + V D) + 4 L G K B S           bf16; S = mean position: what must be read
               of_bandwidth = bytes per step x steps/s / bandwidth ceiling; tokens/s = B steps/s
The ceilings are measured again at the start of every call, and a share is of its own call's ceiling.

Checks (error = ||bf16 - fp32|| / ||fp32||, same random weights, TF32 off, the reference never compiled):
    training   loss and all gradients of the first pass of the timed step, in its very shape, the reference row by row
    decode     the logits of a prefill and of forced tokens after it; the reference upcasts one layer at a time, so
               that all layers are checked also where the model does not fit in float32
"""

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ceiling import measure_ceilings, round_digits, summarise, time_calls
from benchmarks.plumbing.decoding import (
    CHECKED_STEPS,
    Decoder,
    OrdinaryDecoder,
    check_decoding,
    check_logits,
    count_prefill_flops,
    count_step_bytes,
    repeat_rows,
)
from benchmarks.plumbing.float32 import (
    Gradients,
    random_model,
    random_tokens,
    reference_gradients,
    reference_logits,
    relative_error,
    take_gradients,
)
from benchmarks.plumbing.report import Report
from llm.data.loader import Batch
from llm.infer.static_decode import StaticDecoder
from llm.model.config import ModelConfig
from llm.model.flops import flops_per_token
from llm.model.presets import PRESETS
from llm.model.transformer import Transformer
from llm.train.local import LocalEngine, TrainConfig

# bf16 rounding alone, measured on a CPU: loss 1e-5 at 3 layers and 1e-4 at 52, gradients 0.018 and 0.029. One
# query/key/value matrix with its rows moved by one: gradients above 1.0.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.001, 0.06
TRAIN_PRESETS, DECODE_PRESETS = ["small", "1b"], ["1b", "7b", "30b"]
# Sequences of the preset's context in a step (131,072 tokens), and in one pass; the latter are halved until they fit.
ROWS, PASS_ROWS = {"small": 128, "1b": 64}, {"small": 64, "1b": 16}
DECODE_ROWS = [1, 8, 64]
PREFILL_ROWS = [1, 8]
CHECKED_ROWS = 2


@dataclass(frozen=True)
class Run:
    """What one call was asked for, and the ceilings that it found."""

    device: torch.device
    seconds: float
    matrix_tflops: float
    bandwidth_gb_s: float
    compile: bool = True
    recompute: bool = False
    rows: int | None = None
    pass_rows: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["ceiling", "train", "decode"])
    parser.add_argument("--preset", choices=sorted(PRESETS), action="append", help="may be given more than once")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring per figure")
    parser.add_argument("--device", default="cuda", help="cpu tries the script out; its figures say nothing")
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"))
    parser.add_argument("--rows", type=int, help="sequences per training step, instead of the preset's")
    parser.add_argument("--pass-rows", type=int, help="sequences per forward and backward pass, likewise")
    parser.add_argument("--recompute", action="store_true", help="train with checkpoint_activations")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu tries the script out, at figures that say nothing")
    report = Report(arguments.out, device)
    ceilings = measure_ceilings(device, min(1.0, arguments.seconds))
    for name, figures in ceilings.items():
        report.put("ceiling", name, figures)
    run = Run(
        device, arguments.seconds, ceilings["matrix"]["tflops"], ceilings["bandwidth"]["gb_per_s"],
        compile=not arguments.eager, recompute=arguments.recompute, rows=arguments.rows, pass_rows=arguments.pass_rows,
    )  # fmt: skip
    if arguments.only in (None, "train"):
        for preset in arguments.preset or TRAIN_PRESETS:
            measure_training(preset, run, report)
    if arguments.only in (None, "decode"):
        for preset in arguments.preset or DECODE_PRESETS:
            measure_inference(preset, run, report)
    for target, verdict in judge_targets(report.content).items():
        report.put("targets", target, verdict)
    print(json.dumps(report.content))
    if report.failed:
        sys.exit(f"further from float32 than the tolerance: {', '.join(report.failed)}")


def measure_training(preset: str, run: Run, report: Report) -> None:
    """Time the whole step (loss, gradients, optimiser) for both optimisers, eager and compiled."""
    config = PRESETS[preset]
    rows = run.rows or ROWS.get(preset, 2)
    pass_rows = min(rows, run.pass_rows or PASS_ROWS.get(preset, rows))
    ways = [False, True] if run.compile else [False]
    pending = [(optimiser, compiled) for compiled in ways for optimiser in ("adamw", "muon")]
    tokens = random_tokens(config, rows, config.context + 1, run.device)
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    reference: Gradients | None = None
    while pending:
        optimiser, compiled = pending[0]
        name = f"{preset}/{optimiser}/{'compiled' if compiled else 'eager'}{'-recompute' if run.recompute else ''}"
        training = TrainConfig.model_validate({
            "steps": 1, "batch_size": rows, "micro_batch": pass_rows, "optimiser": optimiser,
            "checkpoint_activations": run.recompute,
        })  # fmt: skip
        with release_memory() as out_of_memory:
            if reference is None:
                reference = reference_gradients(random_model(config, run.device), next(batch.split(pass_rows)))
            report.put("train", name, time_training(config, training, batch, compiled, reference, run))
        if not out_of_memory:
            pending.pop(0)
            continue
        assert pass_rows > 1, f"{name}: one row of {config.context} tokens does not fit"
        print(f"{name}: a pass of {pass_rows} rows does not fit", flush=True)
        pass_rows, reference = pass_rows // 2, None


def time_training(
    config: ModelConfig, training: TrainConfig, batch: Batch, compiled: bool, reference: Gradients, run: Run
) -> dict[str, Any]:
    """Return rate, MFU, memory and errors of one way to train.

    Args:    reference: what float32 makes of the batch's first pass.
    Compiled here and not by the engine, whose flag also asks for deterministic kernels: on a GPU, slower ones.
    """
    model = random_model(config, run.device)
    engine = LocalEngine(model, training)
    with torch.no_grad():
        model(batch.tokens[:1])  # makes the tables of RoPE, without which the model would be compiled twice
    if compiled:
        model.compile(dynamic=False)
    _forget_peak_memory(run.device)
    check = check_training(take_gradients(model, next(batch.split(engine.rows))), reference)
    engine.step(batch, 0.1)
    durations = time_calls(lambda: engine.step(batch, 0.1), run.device, run.seconds)
    rates = [batch.tokens.numel() / seconds for seconds in durations]
    scale = flops_per_token(config) / (1e12 * run.matrix_tflops)
    return {
        "rows": len(batch.tokens),
        "rows_per_pass": engine.rows,
        "tokens_per_row": config.context,
        "tokens_per_s": summarise(rates),
        "step_s": summarise(durations),
        "mfu": summarise([rate * scale for rate in rates]),
        "matrix_ceiling_tflops": run.matrix_tflops,
        "peak_memory_gb": _peak_memory_gb(run.device),
        "check": check,
    }


def check_training(got: Gradients, reference: Gradients) -> dict[str, float | bool]:
    """Return the errors of loss and gradients, and whether both are within tolerance."""
    loss = abs(got.loss / reference.loss - 1)
    gradients = relative_error(got.by_name.values(), [reference.by_name[name] for name in got.by_name])
    passed = loss <= LOSS_TOLERANCE and gradients <= GRADIENT_TOLERANCE
    return {"loss_error": round_digits(loss), "gradient_error": round_digits(gradients), "passed": passed}


def measure_inference(preset: str, run: Run, report: Report) -> None:
    """Time prefill and decoding of several batch sizes, with the ordinary cache and with fixed shapes."""
    config = PRESETS[preset]
    model = random_model(config, run.device)
    prompt = min(128, config.context // 4)
    tokens = random_tokens(config, CHECKED_ROWS, min(2048, config.context), run.device)
    positions = [*range(prompt - 1, prompt + CHECKED_STEPS), tokens.shape[1] - 1]
    reference = reference_logits(model, tokens, positions)
    for rows in PREFILL_ROWS:
        with release_memory() as out_of_memory:
            report.put("prefill", f"{preset}/{rows}", time_prefill(model, tokens, rows, reference[:, -1], run))
        if out_of_memory:
            report.put("prefill", f"{preset}/{rows}", {"out_of_memory": True})
    fixed = "graph" if run.device.type == "cuda" else "fixed"
    for way in ["ordinary", fixed] + ["compiled"] * run.compile:
        for rows in DECODE_ROWS if way != "ordinary" else DECODE_ROWS[:1]:
            with release_memory() as out_of_memory:
                timed = time_decoding(model, way, tokens[:, : prompt + CHECKED_STEPS], rows, reference[:, :-1], run)
                report.put("decode", f"{preset}/{rows}/{way}", timed)
            if out_of_memory:
                report.put("decode", f"{preset}/{rows}/{way}", {"out_of_memory": True})


@torch.no_grad()
def time_prefill(model: Transformer, tokens_BT: Tensor, rows: int, reference_BV: Tensor, run: Run) -> dict[str, Any]:
    """Return rate, share of the matrix ceiling and error of a prompt's forward pass into a cache."""
    tokens = repeat_rows(tokens_BT, rows)
    cache = model.new_cache(rows, tokens.shape[1])

    def read_prompt() -> Tensor:
        cache.used = 0
        return model.unembed(model(tokens, cache)[:, -1])

    check = check_logits(read_prompt(), repeat_rows(reference_BV, rows))
    durations = time_calls(read_prompt, run.device, run.seconds)
    flops = count_prefill_flops(model.config, rows, tokens.shape[1])
    return {
        "rows": rows,
        "tokens_per_row": tokens.shape[1],
        "tokens_per_s": summarise([tokens.numel() / seconds for seconds in durations]),
        "of_ceiling": summarise([flops / seconds / (1e12 * run.matrix_tflops) for seconds in durations]),
        "matrix_ceiling_tflops": run.matrix_tflops,
        "check": check,
    }


def time_decoding(
    model: Transformer, way: str, tokens_BT: Tensor, rows: int, reference_BPV: Tensor, run: Run
) -> dict[str, Any]:
    """Return rate, share of the bandwidth ceiling and error of greedy decoding after a prompt."""
    prompt = tokens_BT.shape[1] - CHECKED_STEPS
    new = min(128, model.config.context - prompt)
    _forget_peak_memory(run.device)
    decoder: Decoder
    if way == "ordinary":
        decoder = OrdinaryDecoder(model, rows, prompt + new)
    else:
        decoder = StaticDecoder(model, rows, prompt + new, compile=way == "compiled")
    check = check_decoding(decoder, repeat_rows(tokens_BT, rows), repeat_rows(reference_BPV, rows))

    def decode() -> None:
        decoder.rewind(prompt)
        for _ in range(new):
            decoder.step()

    steps_per_s = [new / seconds for seconds in time_calls(decode, run.device, run.seconds)]
    moved_gb = 1e-9 * count_step_bytes(model.config, rows, prompt + (new + 1) / 2)
    return {
        "rows": rows,
        "prompt": prompt,
        "new_tokens": new,
        "tokens_per_s": summarise([rows * rate for rate in steps_per_s]),
        "gb_per_step": round_digits(moved_gb),
        "of_bandwidth": summarise([moved_gb * rate / run.bandwidth_gb_s for rate in steps_per_s]),
        "bandwidth_ceiling_gb_s": run.bandwidth_gb_s,
        "peak_memory_gb": _peak_memory_gb(run.device),
        "check": check,
    }


def judge_targets(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each target that has a figure: the best checked way's median, and whether it reaches the target."""
    verdicts: dict[str, dict[str, Any]] = {}
    for title, section, prefix, key, target in (
        ("training of 1b, of the matrix ceiling", "train", "1b/", "mfu", 0.5),
        ("decoding of 1b in one stream, of the bandwidth ceiling", "decode", "1b/1/", "of_bandwidth", 0.6),
        ("decoding of 30b on one card, of the bandwidth ceiling", "decode", "30b/", "of_bandwidth", 0.0),
    ):
        figures = {name: one for name, one in content.get(section, {}).items() if name.startswith(prefix)}
        medians = {name: one[key]["median"] for name, one in figures.items() if one.get("check", {}).get("passed")}
        if medians:
            best = max(medians, key=medians.__getitem__)
            verdicts[title] = {"best": best, "value": medians[best], "target": target, "met": medians[best] >= target}
    return verdicts


@contextmanager
def release_memory() -> Iterator[list[str]]:
    """Start with what is unused given back, compiled code too; a lack of memory ends the block and enters the list."""
    torch.compiler.reset()  # also: the shapes of earlier figures would count towards the limit of recompilations
    gc.collect()
    torch.cuda.empty_cache()
    lacks: list[str] = []
    try:
        yield lacks
    except torch.OutOfMemoryError as error:
        lacks.append(str(error))


def _forget_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_memory_gb(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None


if __name__ == "__main__":
    main()
