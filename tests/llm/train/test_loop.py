"""Training: the loss equals torch's, the schedule is worked by hand, resume is exact to the bit, data order is pure."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.config import Base, ConfigError
from llm.data.loader import IGNORE, Batch, ConversationLoader, WindowLoader, pad_batch
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.train.checkpoint import load_checkpoint, save_checkpoint
from llm.train.local import LocalEngine, TrainConfig, evaluate_loss, model_loss
from llm.train.loop import train
from llm.train.loss import next_token_loss
from llm.train.optimiser import Optimiser, OptimiserConfig
from llm.train.schedule import ScheduleConfig, lr_scale

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, head_size=32, mlp_size=96, context=64
)
TOKENS = np.random.default_rng(0).integers(0, 40, 4000).cumsum().astype(np.uint16) % 300
BASE = Base(dtype="bf16", threads=1)
CONFIG = TrainConfig(steps=12, batch_size=4, checkpoint_every=3, log_every=2)


def make_model(dtype: torch.dtype = torch.float32) -> Transformer:
    model = Transformer(SHAPE)
    init_weights(model, 5)
    return model.to(dtype)


def digest(model: Transformer) -> str:
    blob = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(blob).hexdigest()


def run_training(scratch: Path | None, config: TrainConfig = CONFIG, base: Base = BASE):
    torch.set_num_threads(base.threads)
    model = make_model(base.torch_dtype)
    engine = LocalEngine(model, config)
    trained = train(engine, WindowLoader(TOKENS, 32, config.batch_size, 1).batch, config, base, scratch)
    engine.restore_masters()
    return model, trained.trace


@pytest.mark.parametrize("chunk", [7, 1024])
def test_loss_and_gradients_equal_torch(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 10, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (2, 10), generator=generator)
    targets[0, :4] = IGNORE
    expected = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    got = next_token_loss(hidden, weight, targets, chunk)
    for mine, theirs in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert torch.allclose(got, expected, atol=1e-6)


def test_loss_without_targets_is_zero():
    hidden, weight = torch.randn(1, 3, 8), torch.randn(5, 8)
    assert next_token_loss(hidden, weight, torch.full((1, 3), IGNORE)) == 0.0


def test_schedule_by_hand():
    config = ScheduleConfig(warmup_steps=2, decay=0.5)
    # 10 steps: two of warm-up, three stable, five of decay that end at a fifth
    assert [lr_scale(step, 10, config) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]


def test_first_adamw_step_by_hand():
    model = make_model()
    config = OptimiserConfig(optimiser="adamw", lr=0.1, embedding_lr=0.01, weight_decay=0.0, clip=1e9)
    optimiser = Optimiser(model, config)
    before = model.norm.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = optimiser.step(1.0)
    # Adam's first step is lr * sign(gradient); the norm belongs to the embedding's group
    assert torch.allclose(model.norm.weight, before - 0.01, atol=1e-6)
    assert norm == pytest.approx(sum(p.numel() for p in model.parameters()) ** 0.5)


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path):
    whole, trace = run_training(tmp_path / "a")

    class Killed(Exception):
        pass

    def stop_at_eight(step: int) -> Batch:
        if step == 8:
            raise Killed
        return loader.batch(step)

    loader = WindowLoader(TOKENS, 32, CONFIG.batch_size, 1)
    model = make_model(torch.bfloat16)
    with pytest.raises(Killed):
        train(LocalEngine(model, CONFIG), stop_at_eight, CONFIG, BASE, tmp_path / "b")
    resumed, resumed_trace = run_training(tmp_path / "b")
    assert digest(resumed) == digest(whole)
    assert resumed_trace == trace
    # negative control: one step fewer is another model
    shorter, _ = run_training(None, CONFIG.model_copy(update={"steps": 11}))
    assert digest(shorter) != digest(whole)


@pytest.mark.slow
def test_killed_with_sigkill_resumes_exactly(tmp_path):
    """The kill comes from outside, at a moment drawn from the operating system, after the second checkpoint."""
    script = Path(__file__).with_name("train_until_killed.py")
    whole, _ = run_training(tmp_path / "whole", CONFIG.model_copy(update={"steps": 60}))
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    kill_after = 6 + int.from_bytes(os.urandom(2), "little") % 40
    for line in process.stderr:
        if line.startswith(f"did {kill_after} "):
            process.kill()
    process.wait()
    assert process.returncode == -9, f"was to die at step {kill_after}"
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = [int(line.split()[-1]) for line in resumed.stderr.splitlines() if line.startswith("resumed at step")]
    assert steps, resumed.stderr
    assert 0 < steps[0] <= kill_after + 1
    assert resumed.stderr.count("did ") == 60 - steps[0], "only the steps that were left"
    assert resumed.stdout.strip() == digest(whole), f"killed after step {kill_after}"


def test_loss_falls_below_uniform():
    _, trace = run_training(None, TrainConfig(steps=60, batch_size=8, log_every=10))
    assert trace[-1]["loss"] < trace[0]["loss"] - 0.5


def test_a_damaged_checkpoint_falls_back(tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"x": torch.full((3,), float(step))}, {"trace": []})
    newest = sorted(tmp_path.glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-40])
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found[0], found[1]["x"].tolist()) == (1, [1.0, 1.0, 1.0])
    assert "damaged" in caplog.text


def test_a_non_finite_loss_stops_before_the_step():
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[3] = float("nan")
    before = model.norm.weight.detach().clone()
    with pytest.raises(ConfigError, match="loss is nan"):
        LocalEngine(model, CONFIG).step(Batch(torch.full((1, 4), 3), torch.full((1, 4), 3)), 1.0)
    assert torch.equal(model.norm.weight, before)


def test_each_epoch_visits_every_window_once():
    loader = WindowLoader(np.arange(101, dtype=np.uint16), 10, 5, seed=3)
    starts = [row[0].item() for step in range(2) for row in loader.batch(step).tokens]
    assert sorted(starts) == list(range(0, 100, 10))
    again = [row[0].item() for step in range(2, 4) for row in loader.batch(step).tokens]
    assert sorted(again) == sorted(starts)
    assert again != starts


def test_too_little_text_names_the_remedy():
    with pytest.raises(ConfigError, match=r"lower pretrain\.context"):
        WindowLoader(TOKENS[:8], 32, 2, 1)


def test_padding_is_not_learned():
    batch = pad_batch([([5, 6, 7, 8], [0, 0, 1, 1]), ([5, 9], [0, 1])], pad_id=0)
    assert batch.tokens.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch.targets.tolist() == [[IGNORE, 7, 8], [9, IGNORE, IGNORE]]
    model = make_model()
    alone = [pad_batch([row], 0) for row in [([5, 6, 7, 8], [0, 0, 1, 1]), ([5, 9], [0, 1])]]
    assert evaluate_loss(model, [batch]) == pytest.approx(evaluate_loss(model, alone), abs=1e-4)
    assert float(model_loss(model, batch)) > 0


def test_conversations_of_an_epoch_come_once():
    rows = [([1] * n, [1] * n) for n in range(2, 34)]
    loader = ConversationLoader(rows, 4, 1, 0)
    widths = [tuple((t != IGNORE).sum().item() + 1 for t in loader.batch(step).targets) for step in range(8)]
    assert sorted(n for batch in widths for n in batch) == list(range(2, 34))
