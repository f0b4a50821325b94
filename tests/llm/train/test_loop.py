"""Training: the loss equals torch's, the schedule is worked by hand, resume is exact to the bit, data order is pure."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.config import Base, ConfigError
from llm.data.loader import IGNORE, Batch, ConversationLoader, WindowLoader, pad_batch, prefetch
from llm.data.shards import Shard
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
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


def test_a_frozen_unembedding_costs_no_gradient():
    """The same gradient of the hidden states, and nothing of the unembedding's size is kept for the way back."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 10, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator)
    targets = torch.randint(0, 50, (1, 10), generator=generator)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        got = next_token_loss(hidden, weight, targets)
    learned = next_token_loss(hidden, weight.clone().requires_grad_(), targets)
    wanted = torch.autograd.grad(learned, hidden)[0]
    assert torch.equal(torch.autograd.grad(got, hidden)[0], wanted)
    assert all(tensor.numel() < weight.numel() for tensor in kept)


def test_loss_without_targets_is_zero():
    hidden, weight = torch.randn(1, 3, 8), torch.randn(5, 8)
    assert next_token_loss(hidden, weight, torch.full((1, 3), IGNORE)) == 0.0


@pytest.mark.parametrize("chunk", [7, 1024])
def test_weighted_loss_and_gradients_equal_torch(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 10, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (2, 10), generator=generator)
    weights = torch.rand(2, 10, generator=generator) * 10
    targets[0, :4], weights[0, :4] = IGNORE, 0
    nll = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten().clamp(min=0), reduction="none")
    expected = (nll * weights.flatten()).sum() / weights.sum()
    wanted = torch.autograd.grad(expected, (hidden, weight))
    got = next_token_loss(hidden, weight, targets, chunk, weights_BT=weights)
    assert torch.allclose(got, expected, rtol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    # negative control: without the weights it is another loss
    assert abs(next_token_loss(hidden, weight, targets) - expected) > 1e-2


def test_equal_weights_are_no_weights_and_parts_of_a_batch_add_up():
    batch = pad_batch([([3, 4, 5, 6], [0, 0, 1, 1]), ([7, 8, 9], [0, 1, 1]), ([3, 5], [0, 1])], 0)
    model = make_model()
    double = batch._replace(weights=2.0 * (batch.targets != IGNORE))
    assert torch.allclose(model_loss(model, double), model_loss(model, batch), rtol=1e-6)
    weighted = batch._replace(weights=torch.tensor([[0, 0.5, 0.5], [3, 3, 0], [0.25, 0, 0]]))
    whole, parts = (
        LocalEngine(make_model(), CONFIG.model_copy(update={"micro_batch": rows})).step(weighted, 1.0)
        for rows in (None, 1)
    )
    assert float(parts["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert float(parts["grad"]) == pytest.approx(float(whole["grad"]), rel=1e-5)
    alone = [evaluate_loss(model, [part._replace(weights=None)]) for part in weighted.split(1)]
    assert float(whole["loss"]) == pytest.approx((alone[0] + 6 * alone[1] + 0.25 * alone[2]) / 7.25, abs=1e-5)
    assert evaluate_loss(model, [weighted]) == pytest.approx(float(whole["loss"]), abs=1e-5)


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


def test_loss_falls_below_uniform():
    _, trace = run_training(None, TrainConfig(steps=60, batch_size=8, log_every=10))
    assert trace[-1]["loss"] < trace[0]["loss"] - 0.5


def test_a_non_finite_loss_stops_before_the_step_and_names_its_documents():
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[3] = float("nan")
    before = model.norm.weight.detach().clone()
    batch = Batch(torch.full((1, 4), 3), torch.full((1, 4), 3))
    ids = ["doc-a", "doc-b", "doc-a"]
    with pytest.raises(ConfigError, match=r"step 1: the loss is nan: lower lr .*documents: doc-a, doc-b$"):
        train(LocalEngine(model, CONFIG), lambda step: batch, CONFIG, BASE, None, documents_of=lambda step: ids)
    assert torch.equal(model.norm.weight, before)


def test_a_non_finite_gradient_stops_before_the_step():
    """The loss is finite, a gradient is not: a weight's gradient is made infinite on its way."""
    model = make_model()
    model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    before = model.embedding.weight.detach().clone()
    batch = WindowLoader(TOKENS, 32, 4, 1).batch(0)
    with pytest.raises(ConfigError, match="the gradient is"):
        LocalEngine(model, CONFIG).step(batch, 1.0)
    assert torch.equal(model.embedding.weight, before)


FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(FULL)])
def test_too_little_memory_names_three_settings(error):
    class Full(LocalEngine):
        def step(self, batch, lr_scale):
            raise error

    with pytest.raises(ConfigError) as caught:
        train(Full(make_model(), CONFIG), WindowLoader(TOKENS, 32, 4, 1).batch, CONFIG, BASE, None)
    assert all(name in str(caught.value) for name in ("micro_batch", "checkpoint_activations", "context"))


def test_other_faults_of_a_step_stay_what_they_are():
    class Broken(LocalEngine):
        def step(self, batch, lr_scale):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(Broken(make_model(), CONFIG), WindowLoader(TOKENS, 32, 4, 1).batch, CONFIG, BASE, None)


def take_steps(config: TrainConfig, dtype: torch.dtype = torch.float32, rows: int = 8) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    model = make_model(dtype)
    engine, loader = LocalEngine(model, config), WindowLoader(TOKENS, 32, rows, 1)
    for step in range(3):
        engine.step(loader.batch(step), 1.0)
    engine.restore_masters()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def largest_gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_batch_1_times_accumulation_8_equals_batch_8():
    config = CONFIG.model_copy(update={"batch_size": 8, "optimiser": "adamw", "lr": 1e-3, "embedding_lr": 1e-3})
    whole = take_steps(config)
    # fp32 sums in another order; AdamW's first steps are near-sign steps, which a tiny gradient may turn
    assert largest_gap(whole, take_steps(config.model_copy(update={"micro_batch": 1}))) < 1e-4
    assert largest_gap(whole, take_steps(config.model_copy(update={"micro_batch": 3}))) < 1e-4  # parts of unequal size
    # negative control: a batch of one is another step
    assert largest_gap(whole, take_steps(config, rows=1)) > 1e-3


def test_recomputed_activations_give_the_same_bytes():
    config = CONFIG.model_copy(update={"checkpoint_activations": True})
    for dtype in (torch.float32, torch.bfloat16):
        assert largest_gap(take_steps(CONFIG, dtype), take_steps(config, dtype)) == 0


def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow():
    torch.set_num_threads(1)
    model = make_model(torch.float16)
    engine, loader = LocalEngine(model, CONFIG), WindowLoader(TOKENS, 32, 4, 1)
    engine.optimiser.loss_scale = 2.0**40  # gradients overflow
    before = engine.optimiser.masters[0].clone()
    engine.step(loader.batch(0), 1.0)
    assert engine.optimiser.loss_scale == 2.0**39
    assert torch.equal(engine.optimiser.masters[0], before)
    engine.optimiser.loss_scale = 2.0**10
    values = engine.step(loader.batch(0), 1.0)
    assert not torch.equal(engine.optimiser.masters[0], before)
    exact = LocalEngine(make_model(), CONFIG).step(loader.batch(0), 1.0)
    assert float(values["grad"]) == pytest.approx(float(exact["grad"]), rel=0.02)  # unscaled before it is measured
    state = engine.optimiser.state()
    again = Optimiser(make_model(torch.float16), CONFIG)
    again.load(state)
    assert again.loss_scale == 2.0**10


def test_frozen_parameters_have_no_master_and_do_not_move():
    model = make_model()
    model.embedding.weight.requires_grad_(False)
    before = model.embedding.weight.detach().clone()
    engine = LocalEngine(model, CONFIG)
    engine.step(WindowLoader(TOKENS, 32, 4, 1).batch(0), 1.0)
    assert "embedding.weight" not in engine.optimiser.names
    assert torch.equal(model.embedding.weight, before)


def test_attention_confined_to_documents_sees_nothing_else():
    """Two documents packed into one window: each has the hidden states that it has alone."""
    torch.set_num_threads(1)
    model = make_model()
    first, second = torch.arange(5)[None], torch.arange(40, 47)[None]
    packed = torch.cat((first, second), dim=1)
    segments = torch.tensor([[0] * 5 + [1] * 7])
    confined = model(packed, segments_BT=segments)
    # positions go on over the boundary, but rotary attention sees differences only
    assert torch.allclose(confined[:, :5], model(first), atol=1e-5)
    assert torch.allclose(confined[:, 5:], model(second), atol=1e-5)
    assert not torch.allclose(model(packed)[:, 5:], model(second), atol=1e-2)  # negative control: not confined


def test_the_loader_numbers_documents_and_names_what_a_step_reads():
    shard = Shard(np.arange(40, dtype=np.uint16), np.array([0, 7, 12, 40]), np.array([b"a", b"b", b"c"]))
    loader = WindowLoader(shard.tokens, 10, 3, 1, shard.segments)
    batch = loader.batch(0)
    for row, (start, stop) in enumerate(loader.spans(0)):
        assert batch.tokens[row].tolist() == list(range(start, stop))
        assert batch.segments[row].tolist() == shard.segments(start, stop).tolist()
    # windows 0-9, 10-19 and 20-29, in some order
    assert sorted(one for span in loader.spans(0) for one in shard.documents(*span)) == ["a", "b", "b", "c", "c"]


def test_prefetch_keeps_the_order_and_reads_one_ahead():
    read = []
    steps = prefetch(lambda step: read.append(step) or step * 10, 3, 6)
    assert next(steps) == (3, 30)
    assert list(steps) == [(4, 40), (5, 50)]
    assert read == [3, 4, 5]
    assert list(prefetch(lambda step: 1 / 0, 2, 2)) == []


def test_profile_writes_a_trace(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("PROFILE", "1")
    run_training(tmp_path / "key")
    assert "aten::" in (tmp_path / "profile.json").read_text()
    assert "Self CPU" in caplog.text


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
    assert float(model_loss(model, batch).detach()) > 0


def test_conversations_of_an_epoch_come_once():
    rows = [([1] * n, [1] * n) for n in range(2, 34)]
    loader = ConversationLoader(rows, 4, 1, 0)
    widths = [tuple((t != IGNORE).sum().item() + 1 for t in loader.batch(step).targets) for step in range(8)]
    assert sorted(n for batch in widths for n in batch) == list(range(2, 34))
