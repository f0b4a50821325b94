"""The rlhf stage on tiny models: what is kept passed its bounds, the trace is complete, the same bytes twice."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm.config import Base, ConfigError
from llm.data.schema import Preference, hash_id
from llm.data.tokenizer import Tokenizer
from llm.model.folder import load_model, save_model
from llm.rl.policy_engine import PolicyEngine
from llm.train.lora import LoraConfig
from stages import rlhf
from tests.stages.tiny_rlhf import ask, run_rlhf, write_deps

PARAMS = rlhf.Params(
    base=Base(seed=1, threads=1, dtype="fp32"),
    steps=24,
    prompts_per_step=4,
    answers_per_prompt=8,
    max_new_tokens=8,
    lr=1e-2,
    kl_bound=6.0,
    check_every=6,
    check_prompts=40,
)


@pytest.fixture(scope="module")
def deps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rows = []
    for i in range(80):
        principle = "justice" if i % 8 == 0 else None
        kind = "principle" if principle else "sibling"
        rows.append(Preference(hash_id(str(i)), "g", "s", kind, ask(i), "It sorts.", "It.", principle=principle))
    paths, judge = write_deps(tmp_path_factory.mktemp("rlhf"), rows)
    with torch.no_grad():
        judge.weight_HD.normal_(generator=torch.Generator().manual_seed(0))
        judge.bias_H[1:] = -6.0  # sft is near the bound on costs, not far beyond it
    judge.readable = {"justice": ["principle"]}
    judge.save(paths["models/reward"])
    return paths


@pytest.fixture(scope="module")
def done(deps, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("out")
    return run_rlhf(deps, out, PARAMS), out


def test_kept_policy_is_better_and_within_bounds(done):
    metrics, _ = done
    kept = metrics["kept"]
    assert metrics["kept_step"] > 0
    assert kept["reward_gain"]["low"] > 0
    assert 0 < kept["kl"] <= metrics["bounds"]["kl"]
    assert kept["cost"]["justice"] <= metrics["bounds"]["cost"]["justice"]
    assert abs(kept["length"] / kept["length_of_sft"] - 1) <= PARAMS.length_tolerance
    assert [check["step"] for check in metrics["checks"]] == [0, 6, 12, 18, 24]
    assert metrics["checks"][0]["kl"] == 0.0
    json.dumps(metrics, allow_nan=False)


def test_policy_folder_is_complete_and_differs_from_sft(done, deps):
    _, out = done
    policy = out / "policy"
    assert Tokenizer.load(policy).vocab_size == load_model(policy).config.vocab_size
    sft = load_model(deps["models/sft"]).state_dict()
    assert any(not torch.equal(tensor, sft[name]) for name, tensor in load_model(policy).state_dict().items())
    points = [json.loads(line) for line in (policy / "trace.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == list(range(1, 25))
    assert {"step", "reward", "kl", "length", "entropy", "cost.justice", "multiplier.justice"} <= set(points[0])


def test_the_control_arm_has_no_multipliers(done):
    metrics, out = done
    points = [json.loads(line) for line in (out / "control" / "trace.jsonl").read_text().splitlines()]
    assert {point["multiplier.justice"] for point in points} == {0.0}
    policy, control = ((out / arm / "model.safetensors").read_bytes() for arm in ("policy", "control"))
    assert control != policy
    assert set(metrics["control"]) == {"kept_step", "stopped", "kept", "checks", "multipliers"}


@pytest.mark.parametrize("killed_at", [3, 17, 30])
def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(done, deps, tmp_path, monkeypatch, killed_at):
    """At the third step, at the seventeenth, and in the sixth of the control arm."""
    taken = 0
    step = PolicyEngine.step

    def die(self, batch, lr_scale):
        nonlocal taken
        taken += 1
        if taken == killed_at:
            raise KeyboardInterrupt
        return step(self, batch, lr_scale)

    monkeypatch.setattr(PolicyEngine, "step", die)
    with pytest.raises(KeyboardInterrupt):
        run_rlhf(deps, tmp_path, PARAMS)
    metrics, out = done
    assert run_rlhf(deps, tmp_path, PARAMS) == metrics
    assert taken < 48 + 6  # it did go on: at most the five steps since a checkpoint were taken again
    for arm in ("policy", "control"):
        ours, theirs = tmp_path / arm, out / arm
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert (ours / "trace.jsonl").read_bytes() == (theirs / "trace.jsonl").read_bytes()


def test_same_inputs_same_bytes(done, deps, tmp_path):
    metrics, out = done
    assert run_rlhf(deps, tmp_path, PARAMS) == metrics
    for name in ("model.safetensors", "trace.jsonl", "config.json"):
        assert (tmp_path / "policy" / name).read_bytes() == (out / "policy" / name).read_bytes()


def test_nothing_within_the_bounds_keeps_sft(deps, tmp_path):
    metrics = run_rlhf(deps, tmp_path, PARAMS.model_copy(update={"steps": 1, "kl_bound": 1e-9}))
    assert metrics["kept_step"] == 0
    assert metrics["kept"]["kl"] == 0.0
    kept = (tmp_path / "policy" / "model.safetensors").read_bytes()
    assert kept == (deps["models/sft"] / "model.safetensors").read_bytes()


def test_adapters_learn_over_frozen_sft_weights(deps, tmp_path):
    """Rewards rise, the kept policy is within its bounds, and models/policy is sft plus what the adapter says."""
    sft = load_model(deps["models/sft"])
    with torch.no_grad():
        sft.embedding.weight *= 8  # which stays as it is: with rows so small no hidden state gives distinct logits
    save_model(sft, tmp_path / "sft")
    Tokenizer.load(deps["models/sft"]).save(tmp_path / "sft")
    far = {"steps": 24, "kl_bound": 20.0, "kl_coef": 0.01, "lr": 0.02}
    params = PARAMS.model_copy(update={**far, "lora": LoraConfig(rank=4, alpha=16)})
    metrics = run_rlhf({**deps, "models/sft": tmp_path / "sft"}, tmp_path, params)
    assert metrics["checks"][0]["kl"] == 0.0
    assert metrics["kept_step"] > 0
    assert metrics["kept"]["reward_gain"]["low"] > 0
    assert 0.5 < metrics["kept"]["kl"] <= metrics["bounds"]["kl"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("sft", "policy"))
    adapter = load_file(tmp_path / "policy" / "adapter" / "adapter_model.safetensors")
    for name, tensor in before.items():
        matrix = f"base_model.model.{name.removesuffix('.weight')}"
        if name.split(".")[-2].endswith("_proj"):
            low, high = adapter[f"{matrix}.lora_A.weight"], adapter[f"{matrix}.lora_B.weight"]
            tensor = tensor + 4.0 * (high @ low)
        assert torch.equal(after[name], tensor), name
    assert len(adapter) == 2 * 2 * 7


def test_adapters_that_no_check_passed_leave_sft_to_the_bit(deps, tmp_path):
    params = PARAMS.model_copy(update={"steps": 1, "kl_bound": 1e-9, "lora": LoraConfig(rank=2, alpha=4)})
    assert run_rlhf(deps, tmp_path, params)["kept_step"] == 0
    kept = (tmp_path / "policy" / "model.safetensors").read_bytes()
    assert kept == (deps["models/sft"] / "model.safetensors").read_bytes()


def test_too_few_prompts_are_explained(deps, tmp_path):
    with pytest.raises(ConfigError, match=r"rlhf\.check_prompts=60"):
        run_rlhf(deps, tmp_path, PARAMS.model_copy(update={"check_prompts": 60}))
