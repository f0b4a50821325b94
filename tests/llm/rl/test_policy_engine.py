"""A policy engine raises a known reward on a tiny model, within its bounds, and repeats to the bit."""

import copy

import pytest
import torch

from llm.infer.generate import Completion
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.advantages import compute_group_advantages
from llm.rl.grpo import Check, GRPOConfig, Optimised, Trainer, optimise
from llm.rl.rollout import Rollout, close_answers, measure_kl

VOCAB, STOP = 260, 1
LIKED = frozenset(range(2, 60))
CONFIG = GRPOConfig(
    steps=24,
    prompts_per_step=8,
    answers_per_prompt=8,
    max_new_tokens=8,
    lr=8e-3,
    kl_bound=4.0,
    kl_coef=0.02,
    check_every=4,
)


def reward_liked(prompts, completions):
    """The share of liked tokens: 58 of 260 at the start."""
    return torch.tensor([sum(t in LIKED for t in c.tokens) / len(c.tokens) for c in completions])


def make_trainer(config: GRPOConfig = CONFIG, reward=reward_liked) -> Trainer:
    torch.set_num_threads(1)
    shape = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_size=16,
        mlp_size=64,
        context=32,
    )
    reference = Transformer(shape)
    init_weights(reference, seed=3)
    policy = copy.deepcopy(reference)
    return Trainer(policy, reference, reward, config, (STOP,), torch.float32, seed=0)


def make_prompts(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (4,), generator=generator).tolist() for _ in range(count)]


def run(config: GRPOConfig = CONFIG) -> tuple[Trainer, Check, Optimised]:
    trainer = make_trainer(config)
    prompts = make_prompts(128, 9)
    reference = trainer.calibrate(prompts)
    return trainer, reference, optimise(trainer, lambda i: make_prompts(8, 100 + i), reference, prompts)


@pytest.fixture(scope="module")
def trained() -> tuple[Trainer, Check, Optimised]:
    return run()


def test_reward_rises_within_the_bounds(trained):
    trainer, _, optimised = trained
    prompts = make_prompts(128, 5)
    before, after = make_trainer().check(prompts), trainer.check(prompts)
    assert before.kl == 0.0
    assert optimised.kept_step > 0
    assert after.reward > before.reward + 0.15
    assert 0.0 < after.kl <= CONFIG.kl_bound
    assert after.distinct > 0.9
    assert abs(after.length / before.length - 1) < 0.2
    assert list(optimised.trace[0]) == ["step", "reward", "kl", "length", "entropy"]
    assert optimised.trace[0]["kl"] == 0.0


def test_what_is_kept_is_the_best_that_passed(trained):
    trainer, reference, optimised = trained
    passed = {step: check for step, check in optimised.checks if check.passes(reference, CONFIG)}
    assert optimised.kept_step == max(passed, key=lambda step: passed[step].reward)
    again = trainer.check(make_prompts(128, 9))
    assert again.reward == passed[optimised.kept_step].reward
    assert len(passed) < len(optimised.checks)  # the bound did bind: some step went too far and was not kept


def test_a_policy_passes_only_within_every_bound(trained):
    reference = trained[1]._replace(kl=0.0, length=10.0, distinct=1.0)
    assert reference._replace(kl=3.3, length=10.9, distinct=0.85).passes(reference, CONFIG)
    assert not reference._replace(kl=3.5).passes(reference, CONFIG)  # within the bound of 4, but not with room
    assert not reference._replace(length=8.9).passes(reference, CONFIG)
    assert not reference._replace(length=11.1).passes(reference, CONFIG)
    assert not reference._replace(distinct=0.5).passes(reference, CONFIG)  # one answer to every other prompt


def test_a_policy_that_never_passes_leaves_the_reference():
    trainer, _, optimised = run(CONFIG.model_copy(update={"steps": 4, "kl_bound": 1e-9}))
    assert optimised.kept_step == 0
    for ours, theirs in zip(trainer.policy.parameters(), trainer.reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_same_seed_same_bytes(trained):
    trainer, _, optimised = run()
    assert optimised.trace == trained[2].trace
    for ours, theirs in zip(trainer.policy.parameters(), trained[0].policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_high_price_keeps_the_policy_close():
    def final_kl(kl_coef: float) -> float:
        trainer = make_trainer(CONFIG.model_copy(update={"steps": 12, "kl_coef": kl_coef}))
        return [trainer.step(i, make_prompts(8, 100 + i))["kl"] for i in range(12)][-1]

    assert final_kl(10.0) < final_kl(0.01) / 2


def test_length_is_held_against_a_reward_that_pays_for_words():
    def reward_words(prompts, completions):
        return reward_liked(prompts, completions) + 0.1 * torch.tensor([float(len(c.tokens)) for c in completions])

    def final_length(control: bool) -> float:
        trainer = make_trainer(CONFIG.model_copy(update={"max_new_tokens": 12}), reward_words)
        trainer.stop_ids = tuple(range(0, VOCAB, 8))  # without control the policy learns never to stop
        if not control:
            trainer._compute_advantages = lambda r: compute_group_advantages(r.reward_B.view(-1, 8)).flatten()
        before = trainer.calibrate(make_prompts(128, 9)).length
        for i in range(12):
            trainer.step(i, make_prompts(8, 100 + i))
        return trainer.check(make_prompts(128, 9)).length / before

    uncontrolled, controlled = final_length(control=False), final_length(control=True)
    assert uncontrolled > 1.4
    assert abs(controlled - 1) < (uncontrolled - 1) / 2


def test_kl_of_identical_policies_is_exactly_zero():
    trainer = make_trainer()
    completions = [Completion([5, 6, 7], [0.0] * 3, "length"), Completion([8, STOP], [0.0] * 2, "stop")]
    rollout = Rollout([[2, 3], [4]], completions, torch.zeros(2))
    assert torch.equal(measure_kl(trainer.policy, trainer.reference, rollout), torch.zeros(2))


def test_answers_are_closed_once():
    completions = [Completion([5, 6], [0.0] * 2, "length"), Completion([5, STOP], [0.0] * 2, "stop")]
    assert close_answers([[9], [9]], completions, 7, context=32) == [[9, 5, 6, 7], [9, 5, 7]]
    assert close_answers([[9]], completions[:1], 7, context=3) == [[9, 5, 7]]
