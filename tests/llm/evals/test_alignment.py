"""Reward, divergence and cost of answers, on tiny models."""

import pytest
import torch

from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.evals.alignment import (
    Answers,
    Prompt,
    answer_prompts,
    answer_text,
    collect_prompts,
    compare_rewards,
    estimate_divergence,
    make_prompt,
)
from llm.infer.generate import Completion
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import RewardModel


def make_model(tokenizer: Tokenizer, seed: int) -> Transformer:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=64, **shape))
    init_weights(model, seed)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["How do I sort a list? user assistant", "Call sorted on it."] * 4, 300)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[Prompt]:
    texts = [f"How do I sort list {i}?" for i in range(6)]
    return [make_prompt(tokenizer, [{"role": "user", "content": t}], "Call sorted.", "justice") for t in texts]


def test_prompts_are_different_fit_and_come_in_hash_order(tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    long = make_prompt(tokenizer, [{"role": "user", "content": "list " * 200}], "")
    found = collect_prompts([*prompts, *prompts, long], max_tokens=60)
    assert len(found) == len(prompts)
    assert collect_prompts(list(reversed(prompts)), 60, limit=3) == found[:3]


def test_reward_changes_are_paired_by_prompt(tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    reward = RewardModel(make_model(tokenizer, 1))
    with torch.no_grad():
        reward.weight_HD.normal_(generator=torch.Generator().manual_seed(0))
    sft, policy = (answer_prompts(make_model(tokenizer, seed), tokenizer, prompts, 8, seed=3) for seed in (2, 3))
    same = compare_rewards(sft, sft, reward, tokenizer.im_end_id)
    assert (same.delta.value, same.delta.low, same.delta.high) == (0.0, 0.0, 0.0)
    change = compare_rewards(sft, policy, reward, tokenizer.im_end_id)
    assert change.delta.value == pytest.approx(change.policy - change.sft)
    assert change.delta.n == len(prompts)
    assert set(change.metrics()) == {"sft", "policy", "delta", "delta_low", "delta_high", "n"}


def test_the_stop_token_does_not_change_the_reward_of_a_closed_answer(
    tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    reward = RewardModel(make_model(tokenizer, 1))
    with torch.no_grad():
        reward.weight_HD.normal_(generator=torch.Generator().manual_seed(0))
    tokens = tokenizer.encode("Call sorted on it.")
    closed = Answers(prompts[:1], [Completion([*tokens, tokenizer.im_end_id], [0.0] * (len(tokens) + 1), "stop")])
    cut = Answers(prompts[:1], [Completion(tokens, [0.0] * len(tokens), "length")])
    assert closed.rewards(reward, tokenizer.im_end_id) == cut.rewards(reward, tokenizer.im_end_id)
    assert answer_text(tokenizer, closed.completions[0]) == "Call sorted on it."
    assert closed.lengths == [len(tokens) + 1]


def test_divergence_is_zero_from_itself_and_positive_from_another(tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    policy, other = make_model(tokenizer, 2), make_model(tokenizer, 3)
    answers = answer_prompts(policy, tokenizer, prompts, 8)
    assert estimate_divergence(policy, policy, answers).value == pytest.approx(0.0, abs=1e-5)
    assert estimate_divergence(policy, other, answers).value > 0.0
