"""Rlhf: sft model, reward model and prompts -> a policy that is rewarded more, costs less and has not gone far.

The reward is maximised subject to a bound on the expected cost of each principle.  What is kept is the best policy
that, on prompts which no step used, stays within the bounds on cost, KL and length; if there is none, the one nearest
to them, and the report says so.  models/control is the same run with the multipliers of the costs fixed at zero: what
the constraint is worth is the difference.  With `lora` only adapters learn; what is saved is merged, and holds the
adapter in adapter/.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from llm.config import BaseParams, StageParams, require
from llm.data.tokenizer import Tokenizer
from llm.evals.statistics import as_metrics, paired_difference
from llm.infer.generate import generate
from llm.model.folder import load_model, save_model
from llm.model.transformer import Transformer
from llm.rl.checks import Check
from llm.rl.dpo import DPOConfig, DPOEngine
from llm.rl.judge import Judge
from llm.rl.pairs import read_split
from llm.rl.policy_engine import Generate, Optimised, PolicyConfig, PolicyEngine, Task, optimise
from llm.rl.ppo import PPOConfig, PPOEngine
from llm.rl.prompts import plan_prompts, read_prompts, set_aside
from llm.rl.reward_model import RewardModel
from llm.rl.rollout import RewardFunction
from llm.rl.verifiable import (
    collect_references,
    compute_exact_match,
    compute_word_f1,
    make_format_reward,
    make_match_reward,
)
from llm.train.lora import LoraConfig, adapt_copy, save_adapted
from llm.train.trace import write_trace
from stages.plumbing.stage import Paths, main


class RuleWeights(BaseParams):
    """What rules add to the learned reward; each gives 0 to 1, and 0 leaves it out."""

    docstring_match: float = Field(1.0, ge=0, le=100, description="word F1 with the written answer")
    format: float = Field(0.0, ge=0, le=100, description="ended, a sentence, nothing said twice")
    exact_answer: float = Field(0.0, ge=0, le=100, description="what follows #### is the written answer's")


class Params(PolicyConfig, StageParams):
    algorithm: Literal["grpo", "ppo", "dpo"] = Field("grpo", description="how a step learns from its answers")
    ppo: PPOConfig = Field(PPOConfig(), description="of algorithm: ppo")
    dpo: DPOConfig = Field(DPOConfig(), description="of algorithm: dpo")
    launcher: Literal["local", "ray"] = Field("local", description="ray: answers are sampled by `workers` Ray actors")
    workers: int = Field(1, ge=1, le=1 << 14, description="actors of the ray launcher, one for each GPU")
    control_steps: int | None = Field(
        None, ge=1, le=10**6, description="steps of the control without multipliers; none: as many as the policy takes"
    )
    check_prompts: int = Field(128, ge=2, le=10**6, description="prompts set aside to measure policies on")
    principle_share: float = Field(0.5, ge=0, le=1, description="share of prompts about a principle, or harmless ones")
    max_prompt_tokens: int = Field(96, ge=4, le=1 << 20, description="longer prompts are left out and counted")
    rules: RuleWeights = Field(RuleWeights(), description="weights of rules beside the reward model")
    lora: LoraConfig | None = Field(None, description="train low-rank adapters; none: every weight learns")

    @model_validator(mode="after")
    def _check_launcher(self) -> "Params":
        require(
            self.launcher == "ray" or self.workers == 1,
            f"rlhf.workers={self.workers}: launcher: local is one process; set rlhf.launcher: ray, or leave it out",
        )
        require(
            self.launcher == "local" or self.lora is None or self.lora.base_bits is None,
            "rlhf.lora.base_bits=4: Ray actors take whole weights only; leave it out, or set rlhf.launcher: local",
        )
        return self


def run(params: Params, paths: Paths) -> dict[str, Any]:
    sft = paths.deps["models/sft"]
    tokenizer = Tokenizer.load(sft)
    reference = load_model(sft)
    reward_model = RewardModel.load(paths.deps["models/reward"])
    preferences = paths.deps["data/clean"] / "preferences.parquet"
    room = reference.config.context - params.max_new_tokens - 1
    longest = min(params.max_prompt_tokens, room)
    prompts, too_long = read_prompts(preferences, tokenizer, longest, reward_model.readable)
    require(
        len(prompts) >= 2 * params.check_prompts,
        f"data/clean holds {len(prompts)} training prompts of at most rlhf.max_prompt_tokens="
        f"{params.max_prompt_tokens} tokens; at least twice rlhf.check_prompts={params.check_prompts} are needed",
    )
    check_prompts, left = set_aside(prompts, params.check_prompts, params.principle_share)
    longest_run = max(params.steps, params.control_steps or 0)
    plan = plan_prompts(left, longest_run, params.prompts_per_step, params.principle_share, params.base.seed)
    rules = make_rules(params.rules, tokenizer, read_split(preferences, "train"))
    judge = Judge(reward_model, tokenizer.im_end_id, rules)
    metrics: dict[str, Any] = {"prompts": len(prompts), "too_long": too_long, "bounds": describe_bounds(params)}
    for arm, constrained in (("policy", True), ("control", False)):
        policy = load_model(sft) if params.lora is None else adapt_copy(reference, params.lora, params.base.seed)
        steps = params.steps if constrained else params.control_steps or params.steps
        taken = params.model_copy(update={"steps": steps})
        task = Task(reference, judge, taken, params.base, (tokenizer.im_end_id, tokenizer.eos_id), constrained)
        engine = make_engine(params, policy, task)
        with sample_by(params, policy) as engine.generate:
            done = optimise(
                engine, plan.__getitem__, check_prompts, params.base, paths.scratch / arm, paths.follow(arm)
            )
        save_arm(params, policy, tokenizer, sft, paths.outs[f"models/{arm}"], done)
        metrics |= summarise(done) if arm == "policy" else {"control": summarise(done)}
    return metrics


def make_engine(params: Params, policy: Transformer, task: Task) -> PolicyEngine:
    """Return the engine of the algorithm."""
    match params.algorithm:
        case "grpo":
            return PolicyEngine(policy, task)
        case "ppo":
            return PPOEngine(policy, task, params.ppo)
        case "dpo":
            return DPOEngine(policy, task, params.dpo)


@contextmanager
def sample_by(params: Params, policy: Transformer) -> Iterator[Generate]:
    """Yield what samples answers: this process, or Ray actors while the context lasts."""
    if params.launcher == "local":
        yield generate
    else:
        from llm.rl.ray_rollout import start_generator

        with start_generator(policy, params.workers, params.base) as spread:
            yield spread


def make_rules(
    weights: RuleWeights, tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]]
) -> dict[RewardFunction, float]:
    """Return the rules that weigh something."""
    rules: dict[RewardFunction, float] = {}
    if weights.docstring_match or weights.exact_answer:
        references = collect_references(tokenizer, rows)
        if weights.docstring_match:
            rules[make_match_reward(tokenizer, references, compute_word_f1)] = weights.docstring_match
        if weights.exact_answer:
            rules[make_match_reward(tokenizer, references, compute_exact_match)] = weights.exact_answer
    if weights.format:
        rules[make_format_reward(tokenizer)] = weights.format
    return rules


def save_arm(params: Params, policy: Transformer, tokenizer: Tokenizer, sft: Path, out: Path, done: Optimised) -> None:
    """Write an arm's model, tokenizer and learning curve."""
    if params.lora is None:
        save_model(policy, out)
    else:
        save_adapted(policy, params.lora, sft, out)
    tokenizer.save(out)
    write_trace(out, done.trace)


def describe_bounds(params: Params) -> dict[str, Any]:
    """Return what a policy was held to, for evaluate and the gate."""
    return {
        "kl": params.kl_bound,
        "cost": params.cost_bounds.model_dump(),
        "max_new_tokens": params.max_new_tokens,
    }


def summarise(done: Optimised) -> dict[str, Any]:
    """Return what was kept and how it was chosen; the held-out figures are evaluate's."""
    _, before = done.checks[0]
    after = done.kept
    return {
        "kept_step": done.kept_step,
        "stopped": done.stopped,
        "kept": {
            "reward_gain": as_metrics(paired_difference(after.rewards, before.rewards)),
            "kl": after.kl,
            "length": after.length,
            "length_of_sft": before.length,
            "distinct": after.distinct,
            "constant": after.constant,
            "cost": after.cost,
            "cost_of_sft": before.cost,
        },
        "checks": [{"step": step, **describe_check(check)} for step, check in done.checks],
        "multipliers": {
            name.partition(".")[2]: value
            for name, value in (done.trace[-1] if done.trace else {}).items()
            if name.startswith("multiplier.")
        },
    }


def describe_check(check: Check) -> dict[str, Any]:
    """Return a check without its single rewards."""
    return {
        "reward": check.reward, "kl": check.kl, "length": check.length, "distinct": check.distinct, "cost": check.cost,
        "constant": check.constant,
    }  # fmt: skip


if __name__ == "__main__":
    main(Params, run)
