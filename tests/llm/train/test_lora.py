"""Adapters: off is off, one per matrix of Qwen3's, learned alone, merged exactly, read by PEFT."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm.config import Base, ConfigError
from llm.data.loader import Batch, WindowLoader
from llm.infer.generate import generate
from llm.model.config import ModelConfig
from llm.model.folder import load_model, save_model
from llm.model.presets import PRESETS
from llm.model.transformer import Transformer, init_weights
from llm.train.local import LocalEngine, TrainConfig
from llm.train.loop import train
from llm.train.lora import (
    LoraConfig,
    Target,
    adapt_copy,
    adapter_state,
    add_adapters,
    merge_adapters,
    save_adapted,
)

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_size=16, mlp_size=96, context=64,
    tie_embeddings=False,
)  # fmt: skip
LORA = LoraConfig(rank=4, alpha=12)
TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
STREAM = np.random.default_rng(0).integers(0, 40, 4000).cumsum().astype(np.uint16) % 300
CONFIG = TrainConfig(steps=8, batch_size=4, lr=0.01, embedding_lr=0.01, optimiser="adamw", checkpoint_every=3)
TARGETS = get_args(Target)


def make_model() -> Transformer:
    torch.set_num_threads(1)
    model = Transformer(SHAPE)
    init_weights(model, 7)
    return model


def make_adapted(config: LoraConfig = LORA) -> Transformer:
    """A model whose adapters have learned something."""
    model = make_model()
    add_adapters(model, config, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    return model.unembed(model(TOKENS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_off_is_off(dtype):
    """New adapters change nothing, to the bit: logits, and a cached generation."""
    plain, adapted = make_model().to(dtype), make_model().to(dtype)
    add_adapters(adapted, LORA, 1)
    assert torch.equal(logits(plain), logits(adapted))
    answers = [generate(one, [[1, 2, 3], [4]], max_new_tokens=8, stop_ids=[], seed=3) for one in (plain, adapted)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_is_the_matrix_of_that_name(tmp_path, target):
    """W + (alpha / rank) B A, written by hand into the Hugging Face file, gives the adapted model's logits."""
    config = LoraConfig(rank=4, alpha=12, targets=(target,))
    adapted = make_adapted(config)
    state = adapter_state(adapted)
    assert len(state) == 2 * SHAPE.num_layers
    save_model(make_model(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [key for key in state if key.endswith("lora_A.weight")]:
        low, high = state[name], state[name.replace("lora_A", "lora_B")]
        matrix = name.removeprefix("base_model.model.").replace(".lora_A", "")
        assert matrix.split(".")[-2] == target
        weights[matrix] = weights[matrix] + 3.0 * (high @ low)
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.allclose(logits(load_model(tmp_path)), logits(adapted), atol=1e-5)  # measured 4e-6
    assert (logits(make_model()) - logits(adapted)).abs().max() > 1e-2


def test_merged_weights_compute_the_same():
    adapted, merged = make_adapted(), make_model()
    merge_adapters(merged, adapter_state(adapted), LORA)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5)
    wrong = make_model()
    merge_adapters(wrong, adapter_state(adapted), LORA.model_copy(update={"alpha": 13}))
    assert not torch.allclose(logits(wrong), logits(adapted), atol=1e-3)


def test_merging_what_has_not_learned_changes_no_bit():
    adapted, merged = make_model(), make_model()
    add_adapters(adapted, LORA, 1)
    merge_adapters(merged, adapter_state(adapted), LORA)
    assert all(torch.equal(tensor, merged.state_dict()[name]) for name, tensor in make_model().state_dict().items())


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj", "down_proj")], ids=["all", "some"])
def test_peft_reads_the_adapter(tmp_path: Path, targets):
    peft = pytest.importorskip("peft")
    from transformers import Qwen3ForCausalLM

    config = LoraConfig(rank=4, alpha=12, targets=targets)
    save_model(make_model(), tmp_path / "base")
    adapted = make_adapted(config)
    save_adapted(adapted, config, tmp_path / "base", tmp_path / "out")
    base = Qwen3ForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    with torch.no_grad():
        got = theirs(TOKENS).logits
        assert torch.allclose(got, logits(adapted), atol=1e-4)  # measured 2e-6
        with theirs.disable_adapter():
            assert not torch.allclose(theirs(TOKENS).logits, got, atol=1e-2)
    merged = Qwen3ForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(merged(TOKENS).logits, got, atol=1e-4)
    theirs.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    state = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_what_is_written(tmp_path):
    """The names and the file that PEFT looks for, checked without it; the same bytes twice."""
    save_model(make_model(), tmp_path / "base")
    for name in ("one", "two"):
        save_adapted(make_adapted(), LORA, tmp_path / "base", tmp_path / name)
    files = ["model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    about = json.loads((tmp_path / "one/adapter/adapter_config.json").read_text())
    assert (about["peft_type"], about["r"], about["lora_alpha"], about["bias"]) == ("LORA", 4, 12, "none")
    assert about["target_modules"] == list(TARGETS)
    shapes = {name: tuple(t.shape) for name, t in load_file(tmp_path / "one" / files[1]).items()}
    assert len(shapes) == 2 * 2 * 7
    prefix = "base_model.model.model.layers.1"
    assert shapes[f"{prefix}.self_attn.k_proj.lora_A.weight"] == (4, 64)
    assert shapes[f"{prefix}.self_attn.k_proj.lora_B.weight"] == (32, 4)
    assert shapes[f"{prefix}.mlp.down_proj.lora_A.weight"] == (4, 96)
    assert shapes[f"{prefix}.mlp.up_proj.lora_B.weight"] == (96, 4)


def test_only_adapters_learn_and_only_they_cost_memory():
    model = make_model().to(torch.bfloat16)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_adapters(model, LORA, 1)
    engine = LocalEngine(model, CONFIG)
    losses = [float(engine.step(WindowLoader(STREAM, 32, 4, 1).batch(0), 1.0)["loss"]) for _ in range(10)]
    assert losses[-1] < losses[0] - 0.05
    state = model.state_dict()
    assert all(torch.equal(tensor, state[find_name(name, state)]) for name, tensor in frozen.items())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_" not in name)
    # rank * (inputs + rows) of the seven matrices of each layer; a master and two moments each, in fp32
    adapters = 2 * 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 2 * (64 + 96) + (96 + 64))
    held = [t for key, t in engine.optimiser.state().items() if not key.endswith("/step")]
    assert sum(tensor.numel() for tensor in held) == 3 * adapters
    assert {tensor.dtype for tensor in held} == {torch.float32}


def find_name(name: str, state: dict[str, torch.Tensor]) -> str:
    """Where a weight went: below `base` when its projection is adapted."""
    head, _, last = name.rpartition(".")
    return name if name in state else f"{head}.base.{last}"


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path, optimiser):
    config = CONFIG.model_copy(update={"optimiser": optimiser})

    def run(scratch: Path | None, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        model = make_model().to(torch.bfloat16)
        add_adapters(model, LORA, 1)
        engine = LocalEngine(model, config)

        def batch_of(step: int) -> Batch:
            if step == stop_at:
                raise InterruptedError
            return WindowLoader(STREAM, 32, 4, 1).batch(step)

        train(engine, batch_of, config, Base(threads=1), scratch)
        engine.restore_masters()
        return adapter_state(model)

    whole = run(None)
    with pytest.raises(InterruptedError):
        run(tmp_path, stop_at=6)
    again = run(tmp_path)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_copy_shares_the_frozen_weights():
    reference = make_model()
    policy = adapt_copy(reference, LORA, 1)
    learned = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert all(name.endswith(("lora_A", "lora_B")) for name in learned)
    shared = {parameter.data_ptr() for parameter in reference.parameters()}
    assert {p.data_ptr() for name, p in policy.named_parameters() if name not in learned} == shared
    assert all(parameter.requires_grad for parameter in reference.parameters())
    assert torch.equal(logits(policy), logits(reference))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_adapters(preset):
    shape = PRESETS[preset]
    with torch.device("meta"):
        model = Transformer(shape)
    add_adapters(model, LoraConfig(rank=2, alpha=4), 1)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    d, q, k, m = (
        shape.hidden_size,
        *(n * shape.head_size for n in (shape.num_heads, shape.num_kv_heads)),
        shape.mlp_size,
    )
    assert learned == 2 * shape.num_layers * ((d + q) + 2 * (d + k) + (q + d) + 3 * (d + m))


def test_four_bits_without_a_gpu_are_refused():
    with pytest.raises(ConfigError, match=r"lora.base_bits: 4 needs a model on a GPU \(it is on cpu\).*bitsandbytes"):
        add_adapters(make_model(), LoraConfig(base_bits=4), 1)


def test_a_target_named_twice_is_refused():
    with pytest.raises(ValueError, match="names a matrix twice"):
        LoraConfig(targets=("q_proj", "q_proj"))
