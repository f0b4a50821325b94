"""The GPU benchmark on a CPU: its arithmetic by hand, its references, its checks, and what a broken run leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ceiling, gpu
from benchmarks.plumbing.decoding import (
    CHECKED_STEPS,
    OrdinaryDecoder,
    check_decoding,
    check_logits,
    count_block_weights,
    count_prefill_flops,
    count_step_bytes,
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
from llm.train.local import TrainConfig

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# small numbers for the head: D 32, L 2, H 4, G 2, K 8, M 64, V 300
TINY = ModelConfig(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_size=8, mlp_size=64, context=48
)
RUN = gpu.Run(CPU, seconds=0.0, matrix_tflops=0.5, bandwidth_gb_s=10.0, compile=False)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_batch(config: ModelConfig, rows: int = 2) -> Batch:
    tokens = random_tokens(config, rows, config.context + 1, CPU)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def corrupt(model: Transformer) -> None:
    """Move the rows of one matrix by one: nothing looks odd, and every head reads its neighbour's column."""
    with torch.no_grad():
        weight = model.blocks[1].attention.qkv.weight
        weight.copy_(weight.roll(1, 0))


# --- arithmetic ---


def test_weights_and_bytes_by_hand():
    # a block: q 32x32, k and v 16x32 each, out 32x32, gate and up 64x32 each, down 32x64
    assert count_block_weights(TINY) == 2 * (1024 + 2 * 512 + 1024 + 2 * 2048 + 2048) == 18_432
    matrices = [p for n, p in Transformer(TINY).named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    assert count_block_weights(TINY) == sum(matrix.numel() for matrix in matrices)
    # 18,432 + 300 x 32 weights of 2 bytes; 2 tensors x 2 layers x 2 heads x 8 x 2 bytes for 10 positions of 3 rows
    assert count_step_bytes(TINY, rows=3, positions=10) == 2 * (18_432 + 9_600) + 128 * 10 * 3


def test_prefill_flops_are_a_third_of_training_without_all_but_one_unembedding():
    rows, length = 3, TINY.context
    training = flops_per_token(TINY) / 3 * rows * length
    assert count_prefill_flops(TINY, rows, length) == training - 2 * TINY.vocab_size * 32 * rows * (length - 1)


def test_mfu_by_hand(monkeypatch):
    monkeypatch.setattr(gpu, "time_calls", lambda call, device, seconds: [0.5, 0.25, 1.0])
    batch, training = make_batch(TINY), TrainConfig(steps=1, batch_size=2, micro_batch=1, optimiser="adamw")
    reference = reference_gradients(random_model(TINY, CPU), next(batch.split(1)))
    figures = gpu.time_training(TINY, training, batch, False, reference, RUN)
    # 96 tokens in 0.5 s; 6 x (18,432 + 9,600) + 6 x 2 x 32 x 48 = 186,624 FLOPs a token; the ceiling is 0.5 TFLOP/s
    assert figures["tokens_per_s"] == {"median": 192.0, "low": 96.0, "high": 384.0, "n": 3}
    assert figures["mfu"]["median"] == pytest.approx(192 * 186_624 / 0.5e12, rel=1e-3)
    assert figures["mfu"]["high"] == pytest.approx(384 * 186_624 / 0.5e12, rel=1e-3)
    assert (figures["rows"], figures["rows_per_pass"]) == (2, 1)
    assert figures["check"]["passed"]


def test_share_of_bandwidth_by_hand(monkeypatch):
    monkeypatch.setattr(gpu, "time_calls", lambda call, device, seconds: [2.0])
    model, tokens = random_model(TINY, CPU), random_tokens(TINY, 2, 8 + CHECKED_STEPS, CPU)
    reference = reference_logits(model, tokens, range(7, 8 + CHECKED_STEPS))
    figures = gpu.time_decoding(model, "fixed", tokens, 3, reference, RUN)
    # 40 tokens after 8 fill the context, so a step sees 9 to 48 positions, 28.5 on average; 20 steps/s of 3 rows
    assert (figures["new_tokens"], figures["tokens_per_s"]["median"]) == (40, 60.0)
    moved = 2 * (18_432 + 9_600) + 128 * 28.5 * 3
    assert figures["of_bandwidth"]["median"] == pytest.approx(moved * 20 / 10e9, rel=1e-3)


def test_share_of_the_matrix_ceiling_by_hand(monkeypatch):
    monkeypatch.setattr(gpu, "time_calls", lambda call, device, seconds: [0.1])
    model, tokens = random_model(TINY, CPU), random_tokens(TINY, 2, 20, CPU)
    figures = gpu.time_prefill(model, tokens, 4, reference_logits(model, tokens, [19])[:, 0], RUN)
    flops = 4 * (2 * 18_432 * 20 + 2 * 2 * 32 * 20**2 + 2 * 9_600)
    assert figures["tokens_per_s"]["median"] == 800.0
    assert figures["of_ceiling"]["median"] == pytest.approx(flops / 0.1 / 0.5e12, rel=1e-3)


def test_time_calls_leaves_the_first_call_out_and_summarise_takes_the_median():
    calls: list[int] = []
    durations = ceiling.time_calls(lambda: calls.append(1), CPU, seconds=0.0, at_least=4)
    assert (len(durations), len(calls)) == (4, 5)
    assert ceiling.summarise([3.0, 1.0, 2.00004]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3}


# --- references and checks ---


@pytest.mark.parametrize("tie", [True, False])
def test_references_equal_the_model_in_float32(tie):
    config = TINY.model_copy(update={"tie_embeddings": tie})
    model = random_model(config, CPU, torch.float32)
    batch = make_batch(config, rows=3)
    with torch.no_grad():
        want = model.unembed(model(batch.tokens))
    # fp32 in another order of sums; logits up to 4
    assert torch.allclose(reference_logits(model, batch.tokens, [0, 5, 47]), want[:, [0, 5, 47]], atol=1e-5)
    by_row, whole = reference_gradients(model, batch), take_gradients(model, batch)
    assert by_row.loss == pytest.approx(whole.loss, rel=1e-6)
    assert relative_error(by_row.by_name.values(), [whole.by_name[name] for name in by_row.by_name]) < 1e-5


def test_relative_error_by_hand():
    want = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    got = [torch.tensor([3.0, 0.0]), torch.tensor([3.5])]
    assert relative_error(got, want) == pytest.approx(0.1)
    assert not relative_error([torch.tensor([float("nan")])], [torch.tensor([1.0])]) <= 1.0


@pytest.mark.parametrize("make_decoder", [OrdinaryDecoder, StaticDecoder])
def test_the_check_of_decoding_passes_bf16_and_fails_corrupted_weights(make_decoder):
    model, tokens = random_model(TINY, CPU), random_tokens(TINY, 2, 10 + CHECKED_STEPS, CPU)
    reference = reference_logits(model, tokens, range(9, 10 + CHECKED_STEPS))
    check = check_decoding(make_decoder(model, 2, 40), tokens, reference)
    assert check["passed"]
    assert 0.001 < check["logit_error"] < 0.05  # rounding is seen
    corrupt(model)
    assert not check_decoding(make_decoder(model, 2, 40), tokens, reference)["passed"]
    assert not check_logits(torch.full_like(reference, float("nan")), reference)["passed"]


def test_the_check_of_training_passes_bf16_and_fails_corrupted_weights():
    model, batch = random_model(TINY, CPU), make_batch(TINY)
    reference = reference_gradients(model, batch)
    got = take_gradients(model, batch)
    assert gpu.check_training(got, reference)["passed"]
    assert not gpu.check_training(Gradients(got.loss * 1.01, got.by_name), reference)["passed"]
    halved = {name: gradient / 2 if "down" in name else gradient for name, gradient in got.by_name.items()}
    assert not gpu.check_training(Gradients(got.loss, halved), reference)["passed"]
    corrupt(model)
    assert not gpu.check_training(take_gradients(model, batch), reference)["passed"]


# --- the script ---


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    """Run the script on a short nano and few rows, in this process."""
    monkeypatch.setitem(PRESETS, "nano", PRESETS["nano"].model_copy(update={"context": 64}))
    monkeypatch.setattr(gpu, "DECODE_ROWS", [1, 3])
    monkeypatch.setattr(gpu, "PREFILL_ROWS", [2])
    monkeypatch.setattr(ceiling, "CPU_SHAPES", [(64, 64, 64)])
    monkeypatch.setattr(ceiling, "CPU_BUFFER_BYTES", 1 << 20)

    def run(*options: str) -> Path:
        command = ["gpu", "--device", "cpu", "--preset", "nano", "--seconds", "0", "--out", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", command)
        gpu.main()
        return tmp_path / "cpu.json"

    return run


def test_the_script_writes_every_figure(run_script, capsys):
    path = run_script("--eager", "--rows", "2", "--pass-rows", "1")
    report = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert report["machine"]["torch"] == torch.__version__
    assert set(report["train"]) == {"nano/adamw/eager", "nano/muon/eager"}
    assert set(report["prefill"]) == {"nano/2"}
    assert set(report["decode"]) == {"nano/1/ordinary", "nano/1/fixed", "nano/3/fixed"}
    figures = [figure for section in ("train", "prefill", "decode") for figure in report[section].values()]
    assert all(figure["check"]["passed"] and figure["tokens_per_s"]["median"] > 0 for figure in figures)
    for share in ("mfu", "of_ceiling", "of_bandwidth"):
        assert all(figure[share]["low"] <= figure[share]["median"] for figure in figures if share in figure)
    assert "targets" not in report  # they are of 1b and 30b


@pytest.mark.slow
def test_compiled_ways_are_measured_and_checked(run_script, monkeypatch):
    monkeypatch.setattr(gpu, "DECODE_ROWS", [1])
    report = json.loads(run_script("--rows", "1", "--recompute").read_text())
    assert {"nano/adamw/compiled-recompute", "nano/muon/compiled-recompute"} < set(report["train"])
    assert "nano/1/compiled" in report["decode"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "torch sees no GPU here" in capsys.readouterr().err


def test_a_second_call_adds_and_another_torch_starts_anew(run_script, monkeypatch):
    run_script("--only", "ceiling")
    assert set(json.loads(run_script("--only", "decode", "--eager").read_text())) == {
        "machine", "date", "ceiling", "decode", "prefill",
    }  # fmt: skip
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert set(json.loads(run_script("--only", "ceiling").read_text())) == {"machine", "date", "ceiling"}


def test_corrupted_weights_end_the_script_with_an_error(run_script, monkeypatch):
    def corrupt_first(model, *arguments):
        reference = reference_logits(model, *arguments)
        corrupt(model)
        return reference

    monkeypatch.setattr(gpu, "reference_logits", corrupt_first)
    with pytest.raises(SystemExit, match="further from float32 than the tolerance: prefill nano/2, decode nano/1"):
        run_script("--only", "decode", "--eager")


def test_what_was_measured_before_a_crash_is_kept(run_script, monkeypatch, tmp_path):
    def time_training(config, training, *rest):
        if training.optimiser == "muon":
            raise RuntimeError("cut off")
        return {"mfu": {"median": 0.1}}

    monkeypatch.setattr(gpu, "time_training", time_training)
    with pytest.raises(RuntimeError, match="cut off"):
        run_script("--only", "train", "--eager")
    assert json.loads((tmp_path / "cpu.json").read_text())["train"] == {"nano/adamw/eager": {"mfu": {"median": 0.1}}}


def test_rows_are_halved_until_they_fit(run_script, monkeypatch):
    def time_training(config, training, batch, *rest):
        if training.micro_batch > 2:
            raise torch.OutOfMemoryError("too many rows")
        return {"rows": len(batch.tokens), "rows_per_pass": training.micro_batch}

    monkeypatch.setattr(gpu, "time_training", time_training)
    report = json.loads(run_script("--only", "train", "--eager", "--rows", "8").read_text())
    figures = {"rows": 8, "rows_per_pass": 2}
    assert report["train"] == {"nano/adamw/eager": figures, "nano/muon/eager": figures}


def test_targets_are_judged_by_the_best_way_that_passed_its_check(tmp_path):
    report = Report(tmp_path, CPU)
    for name, share, passed in (("1b/1/graph", 0.55, True), ("1b/1/compiled", 0.7, False), ("1b/8/graph", 0.9, True)):
        report.put("decode", name, {"of_bandwidth": {"median": share}, "check": {"passed": passed}})
    report.put("train", "1b/adamw/compiled", {"mfu": {"median": 0.51}, "check": {"passed": True}})
    report.put("decode", "30b/1/graph", {"out_of_memory": True})
    verdicts = gpu.judge_targets(report.content)
    assert [(one["best"], one["met"]) for one in verdicts.values()] == [
        ("1b/adamw/compiled", True),
        ("1b/1/graph", False),
    ]


def test_the_script_needs_only_light_packages():
    """A bare GPU machine has torch, numpy, tokenizers, safetensors, pydantic and PyYAML, with what these need."""
    heavy = (
        "datasets transformers ray deepspeed mlflow great_expectations prefect bentoml pyarrow pandas rich httpx dvc"
    )
    program = f"import sys\nfor name in {heavy.split()!r}: sys.modules[name] = None\nimport benchmarks.gpu"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
