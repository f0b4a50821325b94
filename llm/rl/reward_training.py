"""Training a reward model on pairs: Bradley-Terry for the reward, binary logistic for the costs.

Shape suffixes: N pairs; the model sees 2 N rows, the chosen answers first; H heads.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from llm.config import BaseParams
from llm.infer.score import pad_right
from llm.rl.losses import compute_bradley_terry_loss, compute_cost_loss
from llm.rl.optimiser import Optimiser
from llm.rl.pairs import Pair
from llm.rl.precision import compute_in
from llm.rl.reward_model import HEADS, RewardModel
from llm.train.schedule import ScheduleConfig, lr_scale

log = logging.getLogger(__name__)
LOG_SECONDS = 5.0


class RewardConfig(BaseParams):
    """How a reward model is trained."""

    steps: int = Field(90, ge=1, le=10**6, description="optimiser steps")
    batch_pairs: int = Field(16, ge=1, le=1 << 14, description="pairs per step")
    lr: float = Field(5e-4, gt=0, le=0.1, description="peak learning rate (AdamW), trunk and heads")
    cost_weight: float = Field(0.5, ge=0, le=100, description="weight of the cost heads' loss beside the reward's")
    shares: dict[str, PositiveFloat] = Field(
        {"principle": 0.75},
        description="weight of each kind of pair, 1 where none is given; principle pairs are few and so repeated",
    )
    log_every: int = Field(5, ge=1, description="steps between points of the learning curve")


def train_reward_model(
    model: RewardModel,
    batches: Sequence[Sequence[Pair]],
    config: RewardConfig,
    dtype: torch.dtype,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Take one step per batch and return the learning curve: {step, loss, accuracy}, means since the last point."""
    optimiser = Optimiser(model, config.lr)
    schedule = ScheduleConfig(warmup=0.1, decay=0.9)
    trace: list[dict[str, float]] = []
    recent: list[tuple[float, float]] = []
    last_log = time.monotonic()
    for step, pairs in enumerate(batches):
        with compute_in(dtype, model.weight_HD.device):
            loss, accuracy = compute_loss(model, pairs, config.cost_weight)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(lr_scale(step, len(batches), schedule))
        recent.append((float(loss.detach()), accuracy))
        if (step + 1) % config.log_every == 0 or step + 1 == len(batches):
            mean_loss, mean_accuracy = (sum(values) / len(recent) for values in zip(*recent, strict=True))
            trace.append({"step": step + 1, "loss": round(mean_loss, 5), "accuracy": round(mean_accuracy, 4)})
            recent = []
            if on_log is not None:
                on_log(trace[-1])
        if trace and (time.monotonic() - last_log > LOG_SECONDS or step + 1 == len(batches)):
            last_log = time.monotonic()
            log.info("step %d/%d | loss %.3f | accuracy %.2f", step + 1, len(batches), *list(trace[-1].values())[1:])
    centre_reward(model, [pair for pairs in batches[-16:] for pair in pairs])
    return trace


def compute_loss(model: RewardModel, pairs: Sequence[Pair], cost_weight: float) -> tuple[Tensor, float]:
    """Return the loss of a batch, and the share of its pairs that the model orders rightly."""
    rows = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    logits_RH = model(*pad_right(rows, model.weight_HD.device))
    chosen_NH, rejected_NH = logits_RH.split(len(pairs))
    margin_N = torch.tensor([pair.margin for pair in pairs], device=logits_RH.device)
    loss = compute_bradley_terry_loss(chosen_NH[:, 0], rejected_NH[:, 0], margin_N)
    judged = [(i, HEADS.index(pair.principle)) for i, pair in enumerate(pairs) if pair.principle is not None]
    if judged and cost_weight > 0:
        places, heads = zip(*judged, strict=True)
        logit = torch.cat([chosen_NH[places, heads], rejected_NH[places, heads]])
        is_bad = torch.cat([torch.zeros(len(judged)), torch.ones(len(judged))]).to(logit.device)
        loss = loss + cost_weight * compute_cost_loss(logit, is_bad)
    return loss, (chosen_NH[:, 0] > rejected_NH[:, 0]).float().mean().item()


@torch.no_grad()
def centre_reward(model: RewardModel, pairs: Sequence[Pair]) -> None:
    """Set the reward head's bias so that the mean reward of these answers is zero: pairs leave it undetermined."""
    rows = [pair.prompt + answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    model.bias_H[0] -= model.compute_logits(rows)[:, 0].mean()
