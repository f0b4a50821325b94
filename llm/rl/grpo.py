"""GRPO under a divergence bound and a length constraint.

Each step samples a group of answers to each of a few prompts, compares every answer with the others of its
group, and takes clipped policy-gradient steps on minibatches.  There is no value model.

    loss = clipped policy loss(A) + kl_coef * mean over tokens of k3(policy, reference)
    A    = group-normalised reward, less what length explains of it, less length_price * length

`kl_coef` is the multiplier of E[sequence KL] <= KL_TARGET * kl_bound, `length_price` that of E[length] = the
reference's.  Neither is a guarantee; `check` measures a policy on fixed prompts, and only a policy that passes
there is ever kept.

Left out: answers are not filtered by advantage, the reference is never replaced, one worker.
Source: DeepSeekMath, arXiv:2402.03300, section 4.1.  Differs: token mean over the batch (see losses.py), and
multipliers in place of constants.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from llm.config import BaseParams
from llm.infer.score import score_tokens
from llm.model.transformer import Transformer
from llm.rl.advantages import compute_group_advantages, price_length
from llm.rl.constraint import Equality, UpperBound
from llm.rl.losses import average_tokens, compute_policy_loss, estimate_kl, estimate_sequence_kl
from llm.rl.optimiser import Optimiser
from llm.rl.precision import compute_in
from llm.rl.rollout import RewardFunction, Rollout, measure_kl, sample_rollout
from llm.train.schedule import ScheduleConfig, lr_scale

# A kept policy must lie within the bound on other prompts too: a mean over a hundred answers is that uncertain.
KL_ROOM = 0.85
KL_TARGET = 0.7
DISTINCT_ROOM = 0.8
LOG_SECONDS = 5.0
log = logging.getLogger(__name__)


class GRPOConfig(BaseParams):
    """How a policy is optimised."""

    steps: int = Field(40, ge=1, le=10**6, description="rollouts")
    prompts_per_step: int = Field(8, ge=1, le=1 << 14, description="prompts of one rollout")
    answers_per_prompt: int = Field(8, ge=2, le=1 << 10, description="answers that are compared with each other")
    minibatches: int = Field(2, ge=1, le=1 << 10, description="optimiser steps per rollout")
    max_new_tokens: int = Field(48, ge=1, le=1 << 16, description="longest answer; longer ones are cut")
    lr: float = Field(3e-4, gt=0, le=0.1, description="peak learning rate (AdamW)")
    clip_eps: float = Field(0.2, gt=0, lt=1, description="how far a probability ratio counts from 1")
    kl_bound: float = Field(
        8.0, gt=0, description="largest mean KL to sft that a kept policy may have, nats per answer"
    )
    kl_coef: float = Field(0.1, gt=0, le=100, description="least price of KL, per nat and token")
    length_rate: float = Field(0.5, ge=0, le=100, description="how fast the price of length follows its error")
    check_every: int = Field(10, ge=1, description="steps between measurements of the policy that may be kept")
    length_tolerance: float = Field(
        0.1, gt=0, lt=1, description="largest relative change of mean length in a kept policy"
    )


class Check(NamedTuple):
    """A policy on fixed prompts, with common random numbers."""

    reward: float
    kl: float
    length: float
    distinct: float  # share of different answers
    rollout: Rollout

    def passes(self, reference: "Check", config: GRPOConfig) -> bool:
        """Say whether this policy may be kept: KL below the bound with room, length and variety as before."""
        same_length = abs(self.length / reference.length - 1.0) <= config.length_tolerance
        varied = self.distinct >= DISTINCT_ROOM * reference.distinct
        return self.kl <= KL_ROOM * config.kl_bound and same_length and varied


@dataclass
class Trainer:
    """A policy, the reference it may not leave, the reward, and the two multipliers."""

    policy: Transformer
    reference: Transformer
    reward: RewardFunction
    config: GRPOConfig
    stop_ids: Sequence[int]
    dtype: torch.dtype
    seed: int

    def __post_init__(self) -> None:
        self.optimiser = Optimiser(self.policy, self.config.lr)
        self.kl_price = UpperBound(KL_TARGET * self.config.kl_bound, self.config.kl_coef, rate=0.3)
        self.length_price = Equality(1.0, self.config.length_rate)
        self.device = self.policy.embedding.weight.device

    def calibrate(self, prompts: Sequence[list[int]]) -> Check:
        """Check the policy before its first step, and hold its mean length from now on."""
        check = self.check(prompts)
        self.length_price.target = check.length
        return check

    def check(self, prompts: Sequence[list[int]], answers_per_prompt: int = 1) -> Check:
        """Measure the policy: the same prompts and random numbers at every call."""
        rollout = self._sample(prompts, answers_per_prompt, self.seed)
        with compute_in(self.dtype, self.device):
            kl_B = measure_kl(self.policy, self.reference, rollout)
        answers = {tuple(one.tokens) for one in rollout.completions}
        return Check(
            rollout.reward_B.mean().item(),
            kl_B.mean().item(),
            rollout.length_B.mean().item(),
            len(answers) / len(rollout.completions),
            rollout,
        )

    def step(self, step: int, prompts: Sequence[list[int]]) -> dict[str, float]:
        """Take one step on one rollout and return its point of the trace, measured before the update."""
        rollout = self._sample(prompts, self.config.answers_per_prompt, self.seed + 1 + step)
        with compute_in(self.dtype, self.device):
            old = rollout.score(self.policy, with_entropy=True)
            ref_logp_BT = rollout.score(self.reference).logp_BT
        advantage_B = self._compute_advantages(rollout)
        for rows in self._split(len(rollout.prompts)):
            self._update(rollout, rows, old.logp_BT, ref_logp_BT, advantage_B, self._lr_scale(step))
        kl = estimate_sequence_kl(old.logp_BT, ref_logp_BT, old.mask_BT).mean().item()
        length = rollout.length_B.mean().item()
        self.kl_price.update(kl)
        self.length_price.update(length)
        return {
            "step": step + 1,
            "reward": round(rollout.reward_B.mean().item(), 5),
            "kl": round(kl, 5),
            "length": round(length, 3),
            "entropy": round(average_tokens(old.entropy_BT, old.mask_BT).item(), 5),
        }

    def _sample(self, prompts: Sequence[list[int]], answers: int, seed: int) -> Rollout:
        def reward(rows: Sequence[list[int]], completions: Sequence) -> Tensor:  # type: ignore[type-arg]
            with compute_in(self.dtype, self.device):
                return self.reward(rows, completions)

        return sample_rollout(
            self.policy, prompts, answers, reward, max_new_tokens=self.config.max_new_tokens,
            stop_ids=self.stop_ids, seed=seed,
        )  # fmt: skip

    def _compute_advantages(self, rollout: Rollout) -> Tensor:
        shape = (-1, self.config.answers_per_prompt)
        advantage_PG = compute_group_advantages(rollout.reward_B.view(shape))
        return price_length(advantage_PG, rollout.length_B.view(shape), self.length_price.value).flatten()

    def _split(self, num_rows: int) -> list[Tensor]:
        # Strided, so that every minibatch holds answers of every group.
        count = min(self.config.minibatches, num_rows)
        return [torch.arange(first, num_rows, count) for first in range(count)]

    def _update(
        self, rollout: Rollout, rows_N: Tensor, old_BT: Tensor, ref_BT: Tensor, advantage_B: Tensor, scale: float
    ) -> None:
        rows = rows_N.tolist()
        sequences, starts = rollout.sequences, rollout.starts
        with compute_in(self.dtype, self.device):
            new = score_tokens(self.policy, [sequences[i] for i in rows], [starts[i] for i in rows])
        width = new.logp_BT.shape[1]
        old_NT, ref_NT = old_BT[rows_N, :width], ref_BT[rows_N, :width]
        advantage_N1 = advantage_B[rows_N, None].to(self.device)
        loss = compute_policy_loss(new.logp_BT, old_NT, advantage_N1, new.mask_BT, self.config.clip_eps)
        loss = loss + self.kl_price.value * average_tokens(estimate_kl(new.logp_BT, ref_NT), new.mask_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(scale)

    def _lr_scale(self, step: int) -> float:
        steps = self.config.steps
        return lr_scale(step, steps, ScheduleConfig(warmup_steps=round(0.05 * steps), decay=0.5))


class Optimised(NamedTuple):
    """What `optimise` did: the learning curve, each check, and which of them was kept (0 is the reference)."""

    trace: list[dict[str, float]]
    checks: list[tuple[int, Check]]
    kept_step: int


def optimise(
    trainer: Trainer,
    prompts_of: Callable[[int], Sequence[list[int]]],
    reference: Check,
    check_prompts: Sequence[list[int]],
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> Optimised:
    """Take all steps, then leave in the trainer's policy the best one that passed a check.

    Args:    prompts_of: the prompts of a step, a pure function.
             reference: check of the untrained policy; what is kept when nothing better passes.
             check_prompts: prompts that no step uses.
    """
    config = trainer.config
    trace: list[dict[str, float]] = []
    checks = [(0, reference)]
    kept_step, kept, best = 0, copy_weights(trainer.policy), reference.reward
    last_log = time.monotonic()
    for step in range(config.steps):
        trace.append(point := trainer.step(step, prompts_of(step)))
        if on_log is not None:
            on_log(point)
        is_last = step + 1 == config.steps
        if is_last or time.monotonic() - last_log > LOG_SECONDS:
            last_log = time.monotonic()
            log.info(
                "step %d/%d | reward %.3f | kl %.2f | length %.1f | entropy %.2f",
                step + 1, config.steps, point["reward"], point["kl"], point["length"], point["entropy"],
            )  # fmt: skip
        if is_last or (step + 1) % config.check_every == 0:
            check = trainer.check(check_prompts)
            checks.append((step + 1, check))
            if check.passes(reference, config) and check.reward > best:
                kept_step, kept, best = step + 1, copy_weights(trainer.policy), check.reward
    restore_weights(trainer.policy, kept)
    if kept_step == 0:
        log.warning("no step raised the reward within the bounds on KL and length: the policy is sft unchanged")
    return Optimised(trace, checks, kept_step)


def copy_weights(model: Transformer) -> dict[str, Tensor]:
    """Return a copy of the weights that learn, which further training does not touch."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore_weights(model: Transformer, kept: dict[str, Tensor]) -> None:
    """Put back what `copy_weights` returned."""
    for name, tensor in kept.items():
        model.get_parameter(name).copy_(tensor)
