"""Policy optimisation under constraints: rollouts, clipped policy steps, multipliers, and checks of what may be kept.

    max_policy min_(multipliers >= 0)  E[reward] - sum over principles of multiplier * (E[cost] - bound)
                                       - kl_coef * (E[KL] - target) - length_price * (E[length] - target)

Each step samples a group of answers to each of a few prompts, judges them, and takes clipped policy-gradient steps on
minibatches.  No multiplier is a guarantee; every few steps the policy is checked on fixed prompts, and only one that
passes there is ever kept.  With `constrained` off the multipliers of the costs stay at zero and costs do not count in
a check: the control that shows what the constraint is worth.

Source: Safe RLHF, arXiv:2310.12773, section 3.3, for the constraint; the algorithms in grpo.py and ppo.py.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from llm.config import Base
from llm.infer.generate import Completion, generate
from llm.infer.score import TokenScores, score_tokens
from llm.model.transformer import Transformer
from llm.rl.advantages import price_repeats
from llm.rl.checks import Bounds, Check, RunawayError, average_costs, stop_runaway
from llm.rl.constraint import CostMultiplier, Equality, UpperBound
from llm.rl.grpo import compute_grpo_advantages
from llm.rl.judge import Judge, Judgement, price_costs
from llm.rl.losses import average_tokens, compute_policy_loss, estimate_kl, estimate_sequence_kl
from llm.rl.precision import compute_in
from llm.rl.prompts import Prompt
from llm.rl.reward_model import PRINCIPLES
from llm.rl.rollout import Rollout, measure_kl
from llm.train.checkpoint import load_checkpoint, save_checkpoint
from llm.train.loop import LoopConfig, train
from llm.train.optimiser import NonFiniteError, Optimiser, OptimiserConfig

KL_TARGET = 0.7
log = logging.getLogger(__name__)


class PolicyConfig(LoopConfig, Bounds):
    """How a policy is optimised."""

    steps: int = Field(40, ge=1, le=10**6, description="rollouts")
    prompts_per_step: int = Field(8, ge=1, le=1 << 14, description="prompts of one rollout")
    answers_per_prompt: int = Field(8, ge=2, le=1 << 10, description="answers that are compared with each other")
    minibatches: int = Field(2, ge=1, le=1 << 10, description="optimiser steps per rollout")
    max_new_tokens: int = Field(48, ge=1, le=1 << 16, description="longest answer; longer ones are cut")
    lr: float = Field(3e-4, gt=0, le=0.1, description="peak learning rate (AdamW)")
    warmup_steps: int = Field(2, ge=0, le=10**6, description="steps that raise the rate linearly")
    decay: float = Field(0.5, ge=0, le=1, description="share of the steps that lower it linearly towards zero")
    clip_eps: float = Field(0.2, gt=0, lt=1, description="how far a probability ratio counts from 1")
    kl_coef: float = Field(0.1, gt=0, le=100, description="least price of KL, per nat and token")
    length_rate: float = Field(0.5, ge=0, le=100, description="how fast the price of length follows its error")
    repeat_price: float = Field(0.2, ge=0, le=100, description="price of an answer that its group repeats, per nat")
    multiplier: float = Field(1.0, ge=0, le=1000, description="first price of a cost; the multipliers start here")
    multiplier_rate: float = Field(0.3, ge=0, le=100, description="how fast the multipliers of costs follow")
    multiplier_limit: float = Field(10.0, gt=0, le=1000, description="largest multiplier of a cost")
    check_every: int = Field(10, ge=1, description="steps between measurements of the policy that may be kept")
    checkpoint_every: int = Field(5, ge=1, description="most steps between checkpoints in .scratch")
    log_every: int = Field(1, ge=1, description="steps between points of the learning curve")


class Generate(Protocol):
    """Samples answers as `llm.infer.generate.generate` does: prompt i draws from (seed, i)."""

    def __call__(
        self,
        model: Transformer,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int],
        seed: int,
    ) -> list[Completion]: ...


@dataclass(frozen=True)
class Task:
    """What a policy is to be made better at, and within what."""

    reference: Transformer  # which it may not leave far
    judge: Judge
    config: PolicyConfig
    base: Base
    stop_ids: Sequence[int]
    constrained: bool = True  # else the multipliers of the costs stay at zero


class PolicyEngine:
    """A policy, its task, and the multipliers: one step per rollout."""

    def __init__(self, policy: Transformer, task: Task):
        config, base, constrained = task.config, task.base, task.constrained
        self.policy, self.reference, self.judge, self.config = policy, task.reference, task.judge, config
        self.dtype, self.seed, self.stop_ids, self.constrained = base.torch_dtype, base.seed, task.stop_ids, constrained
        self.device = policy.embedding.weight.device
        one_rate = OptimiserConfig(optimiser="adamw", lr=config.lr, embedding_lr=config.lr, weight_decay=0.0)
        self.optimiser = Optimiser(policy, one_rate)
        self.kl_price = UpperBound(KL_TARGET * config.kl_bound, config.kl_coef, rate=0.3)
        self.length_price = Equality(1.0, config.length_rate)
        start, rate = (config.multiplier, config.multiplier_rate) if constrained else (0.0, 0.0)
        self.multipliers = {
            name: CostMultiplier(bound, min(start, config.multiplier_limit), rate, config.multiplier_limit)
            for name, bound in config.cost_bounds
        }
        self.generate: Generate = generate
        self.points: list[dict[str, float]] = []
        self.checks: list[tuple[int, Check]] = []
        self.kept_step, self.kept = 0, copy_weights(policy)

    def calibrate(self, prompts: Sequence[Prompt]) -> None:
        """Check the policy before its first step, on the prompts of every check; hold its mean length from now on."""
        self.check_prompts = list(prompts)
        self.checks = [(0, self.check())]
        self.length_price.target = self.checks[0][1].length

    def check(self) -> Check:
        """Measure the policy: the same prompts and random numbers at every call."""
        rollout, judged = self.sample(self.check_prompts, 1, self.seed)
        with compute_in(self.dtype, self.device):
            kl_B = measure_kl(self.policy, self.reference, rollout)
        # Few words fit a prompt of a principle or a harmless one: variety is asked for where answers are many.
        said = [
            (prompt, tuple(one.tokens)) for prompt, one in zip(self.check_prompts, rollout.completions, strict=True)
        ]
        answers = [one for prompt, one in said if not prompt.pool] or [one for _, one in said]
        harmless = Counter(one for prompt, one in said if prompt.harmless)
        return Check(
            judged.reward_B.tolist(),
            kl_B.mean().item(),
            rollout.length_B.mean().item(),
            len(set(answers)) / len(answers),
            average_costs(judged.cost_BP, [prompt.principle for prompt in self.check_prompts]),
            max(harmless.values(), default=0) / max(harmless.total(), 1),
        )

    def sample(self, prompts: Sequence[Prompt], answers: int, seed: int) -> tuple[Rollout, Judgement]:
        """Return `answers` answers to each prompt, neighbours answering the same, and what the judge says of them."""
        repeated = [prompt.ids for prompt in prompts for _ in range(answers)]
        completions = self.answer(repeated, seed)
        with compute_in(self.dtype, self.device):
            return Rollout(repeated, completions), self.judge(repeated, completions)

    def answer(self, prompts: list[list[int]], seed: int) -> list[Completion]:
        """Sample an answer to each prompt."""
        limit = self.config.max_new_tokens
        return self.generate(self.policy, prompts, max_new_tokens=limit, stop_ids=self.stop_ids, seed=seed)

    def step(self, batch: Sequence[Prompt], lr_scale: float) -> dict[str, Tensor | float]:
        done, group = len(self.points) + 1, self.config.answers_per_prompt
        rollout, judged = self.sample(batch, group, self.seed + done)
        with compute_in(self.dtype, self.device):
            old = rollout.score(self.policy, with_entropy=True)
            ref_BT = rollout.score(self.reference).logp_BT
        principles = [prompt.principle for prompt in batch for _ in range(group)]
        signal_B = price_costs(judged.reward_B, *self._price(judged.cost_BP, principles))
        said = [tuple(one.tokens) for one in rollout.completions]
        signal_B = price_repeats(signal_B, said, group, self.config.repeat_price)
        losses = self.learn(rollout, signal_B, old, ref_BT, lr_scale)
        kl = estimate_sequence_kl(old.logp_BT, ref_BT, old.mask_BT).mean().item()
        costs = average_costs(judged.cost_BP, principles)
        point = {
            "reward": judged.reward_B.mean().item(),
            "kl": kl,
            "length": rollout.length_B.mean().item(),
            "entropy": average_tokens(old.entropy_BT, old.mask_BT).item(),
            "kl_coef": self.kl_price.value,
            "length_price": self.length_price.value,
            **{f"cost.{name}": cost for name, cost in costs.items()},
            **{f"multiplier.{name}": one.value for name, one in self.multipliers.items()},
        }
        self.points.append({"step": done, **{name: round(value, 5) for name, value in point.items()}})
        stop_runaway(self.points, self.checks[0][1], self.config)
        self.kl_price.update(kl)
        self.length_price.update(point["length"])
        for name, cost in costs.items():
            self.multipliers[name].update(cost)
        if done % self.config.check_every == 0 or done == self.config.steps:
            self._keep_if_better(done)
        loss, grad = (sum(values) / len(losses) for values in zip(*losses, strict=True))
        return {"loss": loss, "grad": grad, **point}

    def learn(
        self, rollout: Rollout, signal_B: Tensor, old: TokenScores, ref_BT: Tensor, lr_scale: float
    ) -> list[tuple[float, float]]:
        """Take the steps of a rollout by GRPO; return each one's loss and gradient norm.

        Args: signal_B: what is to be maximised.  old, ref_BT: scores of its answers by the policy and the reference.
        """
        group = self.config.answers_per_prompt
        advantage_BT = compute_grpo_advantages(signal_B, rollout.length_B, group, self.length_price.value)
        return self.step_clipped(rollout, old.logp_BT, ref_BT, advantage_BT, self.kl_price.value, lr_scale)

    def step_clipped(
        self, rollout: Rollout, old_BT: Tensor, ref_BT: Tensor, advantage_BT: Tensor, kl_coef: float, lr_scale: float
    ) -> list[tuple[float, float]]:
        """Take a clipped step on each minibatch; return their losses and gradient norms."""
        taken = []
        for rows_N in split_strided(len(rollout.prompts), self.config.minibatches):
            new = self.score_rows(rollout, rows_N)
            width = new.logp_BT.shape[1]
            old_NT, ref_NT, advantage_NT = (x[rows_N, :width].to(self.device) for x in (old_BT, ref_BT, advantage_BT))
            loss = compute_policy_loss(new.logp_BT, old_NT, advantage_NT, new.mask_BT, self.config.clip_eps)
            loss = loss + kl_coef * average_tokens(estimate_kl(new.logp_BT, ref_NT), new.mask_BT)
            taken.append(self.descend(loss, lr_scale))
        return taken

    def score_rows(self, rollout: Rollout, rows_N: Tensor) -> TokenScores:
        """Return the policy's scores of some answers of a rollout, with gradients."""
        rows, sequences, starts = rows_N.tolist(), rollout.sequences, rollout.starts
        with compute_in(self.dtype, self.device):
            return score_tokens(self.policy, [sequences[i] for i in rows], [starts[i] for i in rows])

    def descend(self, loss: Tensor, lr_scale: float) -> tuple[float, float]:
        """Take one optimiser step; return the loss and the gradient norm."""
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), float(self.optimiser.step(lr_scale, loss.detach()))

    def _price(self, cost_BP: Tensor, principles: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Return each answer's cost under its prompt's principle and that principle's multiplier; 0 without one."""
        cost_B, multiplier_B = torch.zeros(len(principles)), torch.zeros(len(principles))
        for row, name in enumerate(principles):
            if name is not None:
                cost_B[row] = cost_BP[row, PRINCIPLES.index(name)]
                multiplier_B[row] = self.multipliers[name].value
        return cost_B, multiplier_B

    def _keep_if_better(self, done: int) -> None:
        """Check the policy, and keep it when it passes and is rewarded more than what was kept.

        sft breaks the bounds on costs: the first policy that keeps them is kept whatever its reward, and until
        there is one, the policy whose costs exceed them least.
        """
        check, (_, reference) = self.check(), self.checks[0]
        best = dict(self.checks)[self.kept_step]
        self.checks.append((done, check))
        faults = check.faults(reference, self.config, self.constrained)
        log.info(
            "check at step %d | reward %.3f (sft %.3f) | kl %.2f | %s | %s",
            done, check.reward, reference.reward, check.kl,
            " | ".join(f"{name} {cost:.2f}" for name, cost in check.cost.items()),
            f"over: {', '.join(faults)}" if faults else "within all bounds",
        )  # fmt: skip
        if any(not fault.startswith("cost.") for fault in faults):
            return
        ours, theirs = (one.excess(self.config) if self.constrained else 0.0 for one in (check, best))
        if (-ours, check.reward) > (-theirs, best.reward):
            self.kept_step, self.kept = done, copy_weights(self.policy)

    def state(self) -> dict[str, Tensor]:
        """Return what learns and how, under flat names."""
        return self.optimiser.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned in an earlier process."""
        self.optimiser.load(state)

    def save(self, folder: Path, step: int, extra: dict[str, Any], keep: int) -> None:
        state = self.state() | {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        prices = [self.kl_price.base, self.kl_price.value, self.length_price.value]
        costs = {name: [one.value, one.mean] for name, one in self.multipliers.items()}
        checks = [[at, check.to_json()] for at, check in self.checks]
        mine = {"points": self.points, "checks": checks, "kept": self.kept_step, "prices": prices, "costs": costs}
        save_checkpoint(folder, step, state, {**extra, "policy": mine}, keep)

    def load(self, folder: Path, fits: Callable[[int, dict[str, Any]], bool]) -> tuple[int, dict[str, Any]] | None:
        if (found := load_checkpoint(folder, fits)) is None:
            return None
        step, state, extra = found
        self.kept = {name.removeprefix("kept."): state.pop(name) for name in list(state) if name.startswith("kept.")}
        self.load_state(state)
        mine = extra["policy"]
        self.points, self.kept_step = mine["points"], mine["kept"]
        self.checks = [(at, Check(**check)) for at, check in mine["checks"]]
        self.kl_price.base, self.kl_price.value, self.length_price.value = mine["prices"]
        for name, (value, mean) in mine["costs"].items():
            self.multipliers[name].value, self.multipliers[name].mean = value, mean
        return step, extra

    def agree(self, wish: bool) -> bool:
        return wish


class Optimised(NamedTuple):
    """What `optimise` did: the learning curve, each check, the step that was kept (0 is sft), why it ended early."""

    trace: list[dict[str, float]]
    checks: list[tuple[int, Check]]
    kept_step: int
    stopped: str | None

    @property
    def kept(self) -> Check:
        """The check of what was kept."""
        return dict(self.checks)[self.kept_step]


def optimise(
    engine: PolicyEngine,
    prompts_of: Callable[[int], Sequence[Prompt]],
    check_prompts: Sequence[Prompt],
    base: Base,
    scratch: Path | None = None,
    on_log: Callable[[Mapping[str, float]], None] | None = None,
) -> Optimised:
    """Take or resume all steps, then leave in the engine's policy the best one that passed a check.

    A run that goes astray (see `stop_runaway`, or a loss that is no number) ends early with what was kept before.

    Args:    prompts_of: the prompts of a step, a pure function.  check_prompts: prompts that no step uses.
    """
    engine.calibrate(check_prompts)
    stopped = None
    try:
        train(engine, prompts_of, engine.config, base, scratch, on_log=on_log)
    except (RunawayError, NonFiniteError) as error:
        stopped = f"step {len(engine.points)}: {error}"
        log.error("stopped at %s. What was kept at step %d stays", stopped, engine.kept_step)
    restore_weights(engine.policy, engine.kept)
    done = Optimised(engine.points, engine.checks, engine.kept_step, stopped)
    faults = done.kept.faults(engine.checks[0][1], engine.config, engine.constrained)
    if engine.kept_step == 0 or faults:
        log.warning("no step stayed within all bounds: kept is step %d, over: %s", engine.kept_step, ", ".join(faults))
    return done


def split_strided(count: int, parts: int) -> list[Tensor]:
    """Return places 0..count-1 in at most `parts` parts, neighbours apart: each holds answers to every prompt."""
    parts = min(parts, count)
    return [torch.arange(first, count, parts) for first in range(parts)]


def copy_weights(model: Transformer) -> dict[str, Tensor]:
    """Return a copy of the weights that learn, which further training does not touch."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore_weights(model: Transformer, kept: dict[str, Tensor]) -> None:
    """Put back what `copy_weights` returned."""
    for name, tensor in kept.items():
        model.get_parameter(name).copy_(tensor)
