"""The planner: memory against what autograd keeps and real steps allocate, times against published and real steps."""

import json
import subprocess
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from llm.config import ConfigError
from llm.data.loader import Batch
from llm.model.config import ModelConfig
from llm.model.presets import PRESETS
from llm.model.transformer import Transformer, init_weights
from llm.train.dial import turn_dial
from llm.train.footprint import Job, count_activation_bytes, measure_footprint
from llm.train.hardware import DEVICES
from llm.train.layout import Layout
from llm.train.local import LocalEngine, TrainConfig
from llm.train.plan import USABLE, as_report, choose_layout, list_layouts, plan_layout
from llm.train.step_time import count_muon_flops


def make_engine(shape, rows, length, optimiser, **config):
    """Return an engine that has taken a step, so that its state exists, and a batch."""
    model = Transformer(shape)
    init_weights(model, 0)
    config = TrainConfig(steps=1, batch_size=rows, optimiser=optimiser, lr=1e-4, **config)
    engine = LocalEngine(model.to(torch.bfloat16), config)
    block = torch.randint(0, shape.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(block[:, :-1], block[:, 1:])
    engine.step(batch, 1.0)
    return engine, batch


def measure_peak(engine, batch):
    """Return weights, masters and moments, and on top the most that torch had allocated at once during a step."""
    state = sum(tensor.nbytes for tensor in engine.optimiser.state().values() if tensor.ndim)
    weights = sum(parameter.nbytes for parameter in engine.model.parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        engine.step(batch, 1.0)
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return weights + state + peak


@pytest.mark.parametrize("name, change", [("nano", {}), ("mini", {}), ("mini", {"num_kv_heads": 1})])
def test_activations_are_what_autograd_keeps(name, change):
    shape = PRESETS[name].model_copy(update=change)
    model = Transformer(shape)
    init_weights(model, 0)
    model.to(torch.bfloat16)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}  # the tensors too: a freed one's address would be taken for another

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(2, 256, dtype=torch.int64))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    block, last = count_activation_bytes(shape, 2, 256, on_gpu=False, checkpointing=False)
    assert 512 * (shape.num_layers * block.kept + last) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    "name, rows, optimiser, micro, checkpointing",
    [
        ("nano", 16, "muon", None, False),
        ("nano", 16, "adamw", 4, False),
        ("mini", 4, "muon", None, False),
        ("mini", 8, "adamw", None, True),
    ],
)
def test_peak_memory_is_within_15_percent_of_real_steps(name, rows, optimiser, micro, checkpointing):
    check_peak(PRESETS[name], rows, 256, optimiser, micro, checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize("rows, optimiser, micro", [(1, "muon", None), (2, "adamw", 1)])
def test_peak_memory_of_the_small_preset(rows, optimiser, micro):
    check_peak(PRESETS["small"], rows, 512, optimiser, micro, False)


def check_peak(shape, rows, length, optimiser, micro, checkpointing):
    settings = {"micro_batch": micro, "checkpoint_activations": checkpointing}
    measured = measure_peak(*make_engine(shape, rows, length, optimiser, **settings))
    job = Job(shape, length, rows, 1, optimiser)
    layout = Layout(micro_batch=micro or rows, checkpointing=checkpointing)
    predicted = measure_footprint(job, layout, on_gpu=False).total
    print(f"\nplanned {predicted / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB: {predicted / measured - 1:+.1%}")
    assert predicted == pytest.approx(measured, rel=0.15)
    # negative control: half the sequences do not need as much
    half = measure_footprint(job, layout._replace(micro_batch=max(1, layout.micro_batch // 2)), False).total
    assert layout.micro_batch == 1 or checkpointing or half < 0.9 * predicted


LLAMA = ModelConfig(
    vocab_size=32_000, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_size=128, mlp_size=11_008,
    context=4096, tie_embeddings=False,
)  # fmt: skip
LLAMA_70B = LLAMA.model_copy(
    update={"hidden_size": 8192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 8, "mlp_size": 28_672}
)
LLAMA_8B = LLAMA.model_copy(update={"vocab_size": 128_256, "num_kv_heads": 8, "mlp_size": 14_336, "context": 8192})


@pytest.mark.parametrize(
    "shape, gpus, gpu, batch, tokens_per_s_gpu",
    [
        (LLAMA, 256, "a100-80", 1024, 2e12 / (184_320 * 3600)),  # Llama 2 7B, arXiv:2307.09288, table 2
        (LLAMA_70B, 512, "a100-80", 1024, 2e12 / (1_720_320 * 3600)),  # Llama 2 70B, the same
        (LLAMA_8B, 8, "h100", 16, 6258),  # torchtitan, Llama 3.1 8B with FSDP, arXiv:2410.06511, table 1
    ],
)
def test_published_runs_come_out_within_30_percent(shape, gpus, gpu, batch, tokens_per_s_gpu):
    plan = choose_layout(Job(shape, shape.context, batch, 1), gpus, DEVICES[gpu])
    print(f"\n{plan.tokens_per_s / gpus:.0f} planned, {tokens_per_s_gpu:.0f} published; {plan.layout}")
    assert plan.tokens_per_s / gpus == pytest.approx(tokens_per_s_gpu, rel=0.3)


def job_of(name, gpus):
    shape = PRESETS[name]
    settings = turn_dial(shape, shape.context, "muon" if gpus == 1 else "adamw")
    return Job(shape, shape.context, settings.batch_size, settings.tokens, "muon" if gpus == 1 else "adamw")


def test_muon_flops_by_hand():
    shape = ModelConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=1, num_kv_heads=1, head_size=32, mlp_size=64, context=16
    )
    # qkv 32 x 96, out 32 x 32, gate and up 32 x 128, down 32 x 64: 4 r r c + 2 r^3, five times, two layers
    columns = 96 + 32 + 128 + 64
    assert count_muon_flops(shape) == 2 * 5 * (4 * 32 * 32 * columns + 4 * 2 * 32**3)


def test_a_chosen_layout_fits_and_none_that_fits_is_much_faster():
    job, device = job_of("7b", 64), DEVICES["h100"]
    plan = choose_layout(job, 64, device)
    others = [plan_layout(job, layout, device) for layout in list_layouts(job, 64, device)]
    assert plan.fits
    assert plan.time.total <= 1.02 * min(other.time.total for other in others if other.fits)
    assert any(not other.fits for other in others)


def test_thirty_billion_fit_on_64_h200_and_not_without_sharding():
    job, device = job_of("30b", 64), DEVICES["h200"]
    plan = choose_layout(job, 64, device)
    assert plan.fits
    assert plan.layout.workers == 64
    whole = plan_layout(job, Layout(64, 0, 1, 1, 1, True), device)
    assert not whole.fits
    assert whole.footprint.total > 29.9e9 * 4  # weights and gradients in bf16 on every rank


def test_when_nothing_fits_part_and_remedy_are_named():
    with pytest.raises(ConfigError, match=r"of 24 GB can be used; most of it is optimiser .* Remedy: \d+ such GPUs"):
        choose_layout(job_of("30b", 8), 8, DEVICES["l4"])
    with pytest.raises(ConfigError, match="cannot share a batch of 128 sequences evenly"):
        choose_layout(job_of("small", 2), 96, DEVICES["l4"])


def test_parts_sum_to_totals():
    report = as_report(choose_layout(job_of("1b", 8), 8, DEVICES["h100"]))
    for parts in (report["bytes_per_rank"], report["step_s"]):
        assert sum(parts.values()) == pytest.approx(2 * parts["total"])
    assert report["bytes_per_rank"]["total"] <= report["usable_bytes"] == USABLE * 80e9
    assert report["days"] * 86_400 == pytest.approx(report["tokens"] / report["tokens_per_s"])


def test_recomputing_saves_memory_and_costs_time():
    job, device = job_of("7b", 64), DEVICES["h200"]
    kept, recomputed = (plan_layout(job, Layout(64, 2, micro_batch=4, checkpointing=c), device) for c in (False, True))
    assert recomputed.footprint.activations < 0.2 * kept.footprint.activations
    assert 1.2 < recomputed.time.total / kept.time.total < 1.4


def run_plan(*arguments):
    command = [sys.executable, "-m", "llm.train.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_prints_a_table_json_and_one_clear_error():
    report = json.loads(run_plan("--preset", "30b", "--gpus", "64", "--gpu", "h200", "--json").stdout)
    assert report["gpu"] == "h200"
    assert not report["measured"]
    shown = run_plan("--preset", "7b", "--gpus", "64", "--gpu", "h100").stdout
    assert all(word in shown for word in ("optimiser", "activations", "tokens/s", "days", "modelled, not measured"))
    failed = run_plan("--preset", "30b", "--gpu", "4090")
    assert failed.returncode == 1
    assert failed.stderr.startswith("nothing fits: ")
    assert "Traceback" not in failed.stderr
