"""Every algorithm raises a true reward within its bounds, none does by shuffled rewards, and all resume to the bit."""

import copy

import pytest
import torch

from llm.config import Base
from llm.rl.dpo import DPOConfig, DPOEngine
from llm.rl.judge import Judge
from llm.rl.policy_engine import Optimised, PolicyConfig, PolicyEngine, Task, optimise
from llm.rl.ppo import PPOConfig, PPOEngine
from llm.rl.prompts import Prompt
from llm.rl.reward_model import RewardModel
from tests.llm.rl.tiny import STOP, make_model, make_prompts, reward_liked, shuffle_rewards

BASE = Base(dtype="fp32", seed=0)
CONFIG = PolicyConfig(
    steps=16, prompts_per_step=8, answers_per_prompt=8, max_new_tokens=8, lr=8e-3, kl_bound=4.0, kl_coef=0.02,
    check_every=4, log_every=1, checkpoint_every=1,
)  # fmt: skip
ENGINES = {
    "grpo": PolicyEngine,
    "ppo": lambda *given: PPOEngine(*given, PPOConfig()),
    "dpo": lambda *given: DPOEngine(*given, DPOConfig()),
}


def ask(count: int, seed: int) -> list[Prompt]:
    return [Prompt(str(i), ids, None) for i, ids in enumerate(make_prompts(count, seed))]


def make_engine(algorithm: str, reward=reward_liked, config: PolicyConfig = CONFIG) -> PolicyEngine:
    """The reward model has no opinion: the rule is all that is rewarded."""
    reference = make_model()
    judge = Judge(RewardModel(make_model(7)), STOP, {reward: 1.0})
    return ENGINES[algorithm](copy.deepcopy(reference), Task(reference, judge, config, BASE, (STOP,)))


def measure(engine: PolicyEngine):
    """Check the policy by the true reward, on prompts that nothing learned from."""
    engine.judge = Judge(RewardModel(make_model(7)), STOP, {reward_liked: 1.0})
    engine.check_prompts = ask(128, 5)
    return engine.check()


def run(engine: PolicyEngine, scratch=None, prompts_of=lambda step: ask(8, 100 + step)) -> Optimised:
    return optimise(engine, prompts_of, ask(64, 9), BASE, scratch)


@pytest.mark.parametrize("algorithm", ENGINES)
def test_the_true_reward_rises_within_the_bounds(algorithm):
    before = measure(make_engine(algorithm))
    done = run(engine := make_engine(algorithm))
    after = measure(engine)
    assert done.kept_step > 0
    assert after.reward > before.reward + 0.1
    assert 0.0 < after.kl <= CONFIG.kl_bound
    assert abs(after.length / before.length - 1) < 0.2


@pytest.mark.parametrize("algorithm", ENGINES)
def test_shuffled_rewards_raise_nothing(algorithm):
    before = measure(make_engine(algorithm))
    engine = make_engine(algorithm, shuffle_rewards(reward_liked))
    engine.calibrate(ask(8, 9))
    for step in range(CONFIG.steps):
        engine.step(ask(8, 100 + step), 1.0)
    after = measure(engine)
    assert after.kl > 0.1  # it did learn, of what says nothing
    assert abs(after.reward - before.reward) < 0.05


class KilledError(Exception):
    """Stands for the process's end."""


@pytest.mark.parametrize("algorithm", ENGINES)
def test_resumed_equals_uninterrupted(algorithm, tmp_path):
    """Killed in its sixth step, it goes on from the fifth: the same curve and the same bytes of all that learns."""
    config = CONFIG.model_copy(update={"steps": 8})

    def die(step: int) -> list[Prompt]:
        if step == 5:
            raise KilledError
        return ask(8, 100 + step)

    whole = run(engine := make_engine(algorithm, config=config))
    with pytest.raises(KilledError):
        run(make_engine(algorithm, config=config), tmp_path, die)
    resumed = run(again := make_engine(algorithm, config=config), tmp_path)
    assert resumed.trace == whole.trace
    assert resumed.checks == whole.checks
    assert engine.state().keys() == again.state().keys()
    assert all(torch.equal(x, again.state()[name]) for name, x in engine.state().items())


def test_no_pair_is_no_step():
    """Answers that are all rewarded alike teach DPO nothing, and take it nowhere."""
    engine = make_engine("dpo", lambda prompts, completions: torch.ones(len(prompts)))
    engine.length_price.rate = 0.0
    engine.calibrate(ask(8, 9))
    before = {name: x.clone() for name, x in engine.state().items()}
    assert engine.step(ask(8, 100), 1.0)["loss"] == 0.0
    assert all(torch.equal(x, before[name]) for name, x in engine.state().items())


def test_ppo_checkpoints_hold_the_critic():
    engine = make_engine("ppo")
    engine.calibrate(ask(8, 9))
    engine.step(ask(8, 100), 1.0)
    state = {name: x.clone() for name, x in engine.state().items()}
    other = make_engine("ppo")
    other.load_state(state)
    assert torch.equal(other.critic.model.weight_D, engine.critic.model.weight_D)
    assert engine.critic.model.weight_D.abs().sum() > 0
