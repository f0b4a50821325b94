"""A policy engine raises a known reward on a tiny model, within its bounds, and repeats to the bit."""

import copy

import pytest
import torch

from llm.config import Base
from llm.infer.generate import Completion
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl import policy_engine
from llm.rl.advantages import compute_group_advantages
from llm.rl.checks import Bounds, Check, RunawayError, average_costs, stop_runaway
from llm.rl.grpo import compute_grpo_advantages
from llm.rl.judge import Judgement, price_costs
from llm.rl.policy_engine import Optimised, PolicyConfig, PolicyEngine, Task, optimise
from llm.rl.prompts import Prompt
from llm.rl.reward_model import PRINCIPLES
from llm.rl.rollout import Rollout, close_answers, measure_kl
from llm.train.optimiser import NonFiniteError

VOCAB, STOP = 260, 1
LIKED, COSTLY = frozenset(range(2, 60)), frozenset(range(30, 130))
BASE = Base(seed=0, threads=1, dtype="fp32")
CONFIG = PolicyConfig(
    steps=24, prompts_per_step=8, answers_per_prompt=8, max_new_tokens=8, lr=8e-3, kl_bound=4.0, kl_coef=0.02,
    check_every=4, warmup_steps=1,
)  # fmt: skip


def share_of(tokens: frozenset[int], completions) -> torch.Tensor:
    return torch.tensor([sum(t in tokens for t in c.tokens) / len(c.tokens) for c in completions])


def judge_liked(prompts, completions) -> Judgement:
    """The reward is the share of liked tokens: 58 of 260 at the start; nothing costs."""
    return Judgement(share_of(LIKED, completions), torch.zeros(len(completions), len(PRINCIPLES)))


def judge_costly(prompts, completions) -> Judgement:
    """What is liked is costly in part: a policy that follows the reward alone costs more than sft."""
    cost_B = share_of(COSTLY, completions)
    return Judgement(share_of(LIKED, completions), cost_B[:, None].repeat(1, len(PRINCIPLES)))


def make_engine(config: PolicyConfig = CONFIG, judge=judge_liked, constrained: bool = True) -> PolicyEngine:
    torch.set_num_threads(1)
    shape = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_size=16, mlp_size=64,
        context=32,
    )  # fmt: skip
    reference = Transformer(shape)
    init_weights(reference, seed=3)
    policy = copy.deepcopy(reference)
    return PolicyEngine(policy, Task(reference, judge, config, BASE, (STOP,), constrained))


def make_prompts(count: int, seed: int, principle: str | None = None) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, VOCAB, (4,), generator=generator).tolist() for _ in range(count)]
    return [Prompt(str(ids), ids, principle) for ids in rows]


def run(config: PolicyConfig = CONFIG, scratch=None, principle=None, **options) -> tuple[PolicyEngine, Optimised]:
    engine = make_engine(config, **options)
    done = optimise(
        engine, lambda i: make_prompts(8, 100 + i, principle), make_prompts(128, 9, principle), BASE, scratch
    )
    return engine, done


@pytest.fixture(scope="module")
def trained() -> tuple[PolicyEngine, Optimised]:
    return run()


def measure(engine: PolicyEngine, principle: str | None = None) -> Check:
    """Check a policy on prompts that no run has met."""
    engine.check_prompts = make_prompts(128, 5, principle)
    return engine.check()


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_reward_rises_within_the_bounds(trained):
    before, after = measure(make_engine()), measure(copy.copy(trained[0]))
    assert before.kl == 0.0
    assert trained[1].kept_step > 0
    assert after.reward > before.reward + 0.15
    assert 0.0 < after.kl <= CONFIG.kl_bound
    assert after.distinct > 0.9
    assert abs(after.length / before.length - 1) < 0.2
    assert {"step", "reward", "kl", "length", "entropy", "kl_coef", "multiplier.justice"} <= set(trained[1].trace[0])
    assert trained[1].trace[0]["kl"] == 0.0


def test_a_shuffled_reward_does_not_raise_the_true_one():
    """The control of the test above: the same rewards, given to the wrong answers of a group, teach nothing."""

    def shuffled(prompts, completions) -> Judgement:
        reward_B, cost_BP = judge_liked(prompts, completions)
        order = torch.randperm(len(reward_B), generator=torch.Generator().manual_seed(int(1e6 * reward_B.sum())))
        return Judgement(reward_B[order], cost_BP)

    engine, _ = run(judge=shuffled)
    engine.judge = judge_liked
    before, after = measure(make_engine()), measure(engine)
    assert after.reward < before.reward + 0.03


def test_what_is_kept_is_the_best_that_passed(trained):
    engine, optimised = copy.copy(trained[0]), trained[1]
    reference = optimised.checks[0][1]
    passed = {step: check for step, check in optimised.checks if not check.faults(reference, CONFIG)}
    assert optimised.kept_step == max(passed, key=lambda step: passed[step].reward)
    engine.check_prompts = make_prompts(128, 9)
    assert engine.check().reward == passed[optimised.kept_step].reward
    assert len(passed) < len(optimised.checks)  # the bound did bind: some step went too far and was not kept


def test_the_constraint_holds_costs_that_the_reward_alone_raises():
    """Of the liked tokens half are costly: with the multiplier the policy prefers the others, without it does not."""
    config = CONFIG.model_copy(
        update={
            "kl_bound": 6.0,
            "multiplier_rate": 1.0,
            "cost_bounds": CONFIG.cost_bounds.model_copy(update={"justice": 0.3}),
        }
    )
    bounded, done = run(config, principle="justice", judge=judge_costly)
    free, _ = run(config, principle="justice", judge=judge_costly, constrained=False)
    before = measure(make_engine(config, judge_costly), "justice")
    held, loose = measure(bounded, "justice"), measure(free, "justice")
    assert before.cost["justice"] > 0.3
    assert held.cost["justice"] <= 0.3 < loose.cost["justice"]
    assert held.reward > before.reward
    assert done.trace[-1]["multiplier.justice"] > 0
    assert done.trace[-1]["multiplier.autonomy"] == CONFIG.multiplier  # no prompt of it: it was never measured


def make_check(**changes) -> Check:
    return Check(**{"rewards": [0.0], "kl": 0.0, "length": 10.0, "distinct": 1.0, "cost": {"justice": 0.0}, **changes})


def test_a_policy_passes_only_within_every_bound():
    reference, bounds = make_check(), Bounds(kl_bound=4.0)
    assert make_check(kl=3.3, length=10.9, distinct=0.9, cost={"justice": 0.09}).faults(reference, bounds) == []
    assert make_check(kl=3.5).faults(reference, bounds) == ["kl"]  # within the bound of 4, but not with room
    assert make_check(length=8.9).faults(reference, bounds) == ["length"]
    assert make_check(length=11.1).faults(reference, bounds) == ["length"]
    assert make_check(distinct=0.5).faults(reference, bounds) == ["distinct"]  # one answer to every other prompt
    costly = make_check(cost={"justice": 0.12, "autonomy": 0.0})
    assert costly.faults(reference, bounds) == ["cost.justice"]
    assert costly.faults(reference, bounds, constrained=False) == []
    assert costly.excess(bounds) == pytest.approx(0.02)


def test_costs_are_averaged_over_the_prompts_of_their_principle():
    cost_BP = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 0.9, 0.9, 1.0]])
    found = average_costs(cost_BP, ["justice", None, "justice"])
    assert found == {"justice": pytest.approx(0.7)}


def test_the_price_of_a_cost_is_taken_from_the_reward():
    signal = price_costs(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([3.0, 3.0]))
    assert signal.tolist() == [-0.5, 1.0]
    with pytest.raises(ValueError, match="negative"):
        price_costs(torch.zeros(1), torch.zeros(1), torch.tensor([-1.0]))


def test_grpo_advantages_equal_the_hand_worked_values():
    # Two groups of two, all of one length: +-1 / sqrt(2) sample deviations, and 0 in a group of equals.
    advantage = compute_grpo_advantages(torch.tensor([3.0, 1.0, 5.0, 5.0]), torch.full((4,), 7.0), 2, 1.0)
    assert advantage.shape == (4, 1)
    assert advantage.flatten().tolist() == pytest.approx([2**-0.5, -(2**-0.5), 0.0, 0.0], abs=1e-4)


def test_a_policy_that_never_passes_leaves_the_reference():
    engine, optimised = run(CONFIG.model_copy(update={"steps": 4, "kl_bound": 1e-9}))
    assert optimised.kept_step == 0
    assert optimised.stopped is not None  # ten times a bound of nothing is soon passed
    assert same_weights(engine.policy, engine.reference)


def test_same_seed_same_bytes(trained):
    engine, optimised = run()
    assert optimised == trained[1]
    assert same_weights(engine.policy, trained[0].policy)


@pytest.mark.parametrize("killed_at", [3, 10, 21])
def test_a_killed_run_ends_in_the_bytes_of_an_uninterrupted_one(trained, tmp_path, killed_at):
    def die(prompts, completions) -> Judgement:
        if len(engine.points) == killed_at:
            raise KeyboardInterrupt
        return judge_liked(prompts, completions)

    engine = make_engine(judge=die)
    with pytest.raises(KeyboardInterrupt):
        optimise(engine, lambda i: make_prompts(8, 100 + i), make_prompts(128, 9), BASE, tmp_path)
    resumed, done = run(scratch=tmp_path)
    assert done == trained[1]
    assert same_weights(resumed.policy, trained[0].policy)


def test_a_loss_that_is_no_number_keeps_what_was_good(trained):
    def fail(prompts, completions) -> Judgement:
        if len(engine.points) == 9:
            raise NonFiniteError("the loss is nan")
        return judge_liked(prompts, completions)

    engine = make_engine(judge=fail)
    done = optimise(engine, lambda i: make_prompts(8, 100 + i), make_prompts(128, 9), BASE)
    assert done.stopped is not None
    assert "the loss is nan" in done.stopped
    assert len(done.trace) == 9
    assert done.kept_step == max(
        (s for s, c in trained[1].checks if s <= 8), key=lambda s: dict(trained[1].checks)[s].reward
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"kl": 41.0}, "KL"), ({"length": 31.0}, "tokens"), ({"entropy": 0.01}, "entropy"), ({"reward": -2.1}, "reward")],
)
def test_a_run_that_goes_astray_is_stopped(changes, said):
    sane = {"kl": 1.0, "length": 10.0, "entropy": 2.0, "reward": 0.0}
    reference = make_check(rewards=[-1.0, 1.0])  # one standard deviation is 1
    stop_runaway([sane] * 9, reference, Bounds(kl_bound=4.0))
    with pytest.raises(RunawayError, match=said):
        stop_runaway([sane, *[sane | changes] * 5], reference, Bounds(kl_bound=4.0))
    if said == "reward":  # a bad step or two are no collapse
        stop_runaway([sane] * 5 + [sane | changes] * 2, reference, Bounds(kl_bound=4.0))


def test_a_high_price_keeps_the_policy_close():
    def final_kl(kl_coef: float) -> float:
        return run(CONFIG.model_copy(update={"steps": 12, "kl_coef": kl_coef}))[1].trace[-1]["kl"]

    assert final_kl(10.0) < final_kl(0.01) / 2


def test_length_is_held_against_a_reward_that_pays_for_words(monkeypatch):
    def judge_words(prompts, completions) -> Judgement:
        reward_B, cost_BP = judge_liked(prompts, completions)
        return Judgement(reward_B + 0.1 * torch.tensor([float(len(c.tokens)) for c in completions]), cost_BP)

    def final_length() -> float:
        engine = make_engine(CONFIG.model_copy(update={"max_new_tokens": 12, "steps": 12}), judge_words)
        engine.stop_ids = tuple(range(0, VOCAB, 8))  # without control the policy learns never to stop
        done = optimise(engine, lambda i: make_prompts(8, 100 + i), make_prompts(128, 9), BASE)
        return done.checks[-1][1].length / done.checks[0][1].length

    controlled = final_length()

    def leave_length(signal_B, length_B, group, price):
        return compute_group_advantages(signal_B.view(-1, group)).flatten()[:, None]

    monkeypatch.setattr(policy_engine, "compute_grpo_advantages", leave_length)
    uncontrolled = final_length()
    assert uncontrolled > 1.4
    assert abs(controlled - 1) < (uncontrolled - 1) / 2


def test_kl_of_identical_policies_is_exactly_zero():
    engine = make_engine()
    completions = [Completion([5, 6, 7], [0.0] * 3, "length"), Completion([8, STOP], [0.0] * 2, "stop")]
    rollout = Rollout([[2, 3], [4]], completions)
    assert torch.equal(measure_kl(engine.policy, engine.reference, rollout), torch.zeros(2))


def test_answers_are_closed_once():
    completions = [Completion([5, 6], [0.0] * 2, "length"), Completion([5, STOP], [0.0] * 2, "stop")]
    assert close_answers([[9], [9]], completions, 7, context=32) == [[9, 5, 6, 7], [9, 5, 7]]
    assert close_answers([[9]], completions[:1], 7, context=3) == [[9, 5, 7]]
