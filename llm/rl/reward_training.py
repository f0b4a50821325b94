"""Training a reward model on pairs: Bradley-Terry with ties for the reward, binary logistic for the costs.

Shape suffixes: N pairs; the model sees 2 N rows, the chosen answers first; H heads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from llm.config import Base
from llm.infer.score import pad_right
from llm.rl.losses import compute_cost_loss, compute_preference_loss
from llm.rl.pairs import Pair
from llm.rl.precision import compute_in
from llm.rl.reward_model import HEADS, PRINCIPLES, RewardModel
from llm.train.checkpoint import load_checkpoint, save_checkpoint
from llm.train.loop import LoopConfig, Trace, train
from llm.train.optimiser import Optimiser, OptimiserConfig


class RewardConfig(LoopConfig):
    """How a reward model is trained: AdamW at one rate on trunk and heads."""

    steps: int = Field(90, ge=1, le=10**6, description="optimiser steps")
    batch_pairs: int = Field(16, ge=1, le=1 << 14, description="pairs per step")
    lr: float = Field(5e-4, gt=0, le=0.1, description="peak learning rate (AdamW), trunk and heads")
    warmup_steps: int = Field(9, ge=0, le=10**6, description="steps that raise the rate linearly")
    decay: float = Field(0.9, ge=0, le=1, description="share of the steps that lower it linearly towards zero")
    cost_weight: float = Field(2.0, ge=0, le=100, description="weight of the cost heads' loss beside the reward's")
    shares: dict[str, PositiveFloat] = Field(
        {"scene": 1.5, "principle": 0.25, "harmless": 0.5, "sibling": 0.25, "invented": 0.25},
        description="weight of each kind of pair, 1 where none is given; kinds that a model of this size judges no "
        "better than by chance teach it noise, which a policy then exploits",
    )
    log_every: int = Field(5, ge=1, description="steps between points of the learning curve")


class RewardEngine:
    """One process; loss and accuracy of a point are means since the point before."""

    def __init__(self, model: RewardModel, config: RewardConfig, dtype: torch.dtype):
        self.model, self.config, self.dtype = model, config, dtype
        one_rate = OptimiserConfig(optimiser="adamw", lr=config.lr, embedding_lr=config.lr, weight_decay=0.0)
        self.optimiser = Optimiser(model, one_rate)
        self.recent: list[tuple[float, float]] = []

    def step(self, batch: Sequence[Pair], lr_scale: float) -> dict[str, Tensor | float]:
        if len(self.recent) == self.config.log_every:
            self.recent = []
        with compute_in(self.dtype, self.model.weight_HD.device):
            loss, accuracy = compute_loss(self.model, batch, self.config.cost_weight)
        loss.backward()  # type: ignore[no-untyped-call]
        grad = self.optimiser.step(lr_scale, loss.detach())
        self.recent.append((float(loss.detach()), accuracy))
        mean_loss, mean_accuracy = (sum(values) / len(self.recent) for values in zip(*self.recent, strict=True))
        return {"loss": mean_loss, "accuracy": mean_accuracy, "grad": grad}

    def save(self, folder: Path, step: int, extra: dict[str, Any], keep: int) -> None:
        save_checkpoint(folder, step, self.optimiser.state(), {**extra, "recent": self.recent}, keep)

    def load(self, folder: Path, fits: Callable[[int, dict[str, Any]], bool]) -> tuple[int, dict[str, Any]] | None:
        if (found := load_checkpoint(folder, fits)) is None:
            return None
        step, state, extra = found
        self.optimiser.load(state)
        self.recent = [(loss, accuracy) for loss, accuracy in extra["recent"]]
        return step, extra

    def agree(self, wish: bool) -> bool:
        return wish


def train_reward_model(
    model: RewardModel,
    batches: Sequence[Sequence[Pair]],
    calibration: Sequence[Pair],
    config: RewardConfig,
    base: Base,
    scratch: Path | None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> Trace:
    """Take one step per batch, or go on from a checkpoint in `scratch`; return the learning curve.

    Args: calibration: pairs that no batch holds, on which the cost heads are calibrated.
    """
    engine = RewardEngine(model, config, base.torch_dtype)

    def name_pairs(step: int) -> list[str]:
        return [pair.id for pair in batches[step]]

    trained = train(engine, batches.__getitem__, config, base, scratch, documents_of=name_pairs, on_log=on_log)
    centre_reward(model, [pair for pairs in batches[-16:] for pair in pairs])
    calibrate_costs(model, calibration)
    return trained.trace


def compute_loss(model: RewardModel, pairs: Sequence[Pair], cost_weight: float) -> tuple[Tensor, float]:
    """Return the loss of a batch, and the share of its pairs with a winner that the model orders rightly."""
    rows = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    logits_RH = model(*pad_right(rows, model.weight_HD.device))
    chosen_NH, rejected_NH = logits_RH.split(len(pairs))
    margin_N = torch.tensor([pair.margin for pair in pairs], device=logits_RH.device)
    tie_N = torch.tensor([pair.tie for pair in pairs], device=logits_RH.device)
    loss = compute_preference_loss(chosen_NH[:, 0], rejected_NH[:, 0], margin_N, tie_N)
    judged = [(i, HEADS.index(pair.principle)) for i, pair in enumerate(pairs) if pair.principle is not None]
    if judged and cost_weight > 0:
        places, heads = zip(*judged, strict=True)
        logit = torch.cat([chosen_NH[places, heads], rejected_NH[places, heads]])
        is_bad = torch.cat([torch.zeros(len(judged)), torch.ones(len(judged))]).to(logit.device)
        loss = loss + cost_weight * compute_cost_loss(logit, is_bad)
    right_N = (chosen_NH[:, 0] > rejected_NH[:, 0]).float()
    return loss, right_N[~tie_N].mean().item() if not bool(tie_N.all()) else 0.5


@torch.no_grad()
def centre_reward(model: RewardModel, pairs: Sequence[Pair]) -> None:
    """Set the reward head's bias so that the mean reward of these answers is zero: pairs leave it undetermined."""
    rows = [pair.prompt + answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    model.bias_H[0] -= model.compute_logits(rows)[:, 0].mean()


def calibrate_costs(model: RewardModel, pairs: Sequence[Pair]) -> None:
    """Scale and shift each cost head so that its probabilities are those of pairs it was not trained on.

    A head stops learning long before its logits are as large as they may be: its order is right, its probabilities
    are too near 0.5, and a bound on their mean could not be kept by any policy.

    logit' = a * logit + b, with a and b of the least mean of binary cross-entropy + 0.01 (log a)^2 + 0.01 b^2.

    Args:    pairs: of prompts that the model was not trained on; heads without pairs stay as they are.
    Source:  Platt 1999; the weak prior keeps a finite where the order is perfect.
    """
    for principle in PRINCIPLES:
        own = [pair for pair in pairs if pair.principle == principle]
        if not own:
            continue
        head = HEADS.index(principle)
        rows = [pair.prompt + answer for pair in own for answer in (pair.chosen, pair.rejected)]
        logit_N = model.compute_logits(rows)[:, head].double()
        is_bad_N = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(len(own))
        scale, shift = fit_platt(logit_N, is_bad_N)
        with torch.no_grad():
            model.weight_HD[head] *= scale
            model.bias_H[head] = scale * model.bias_H[head] + shift


def fit_platt(logit_N: Tensor, is_bad_N: Tensor) -> tuple[float, float]:
    """Return (a, b) of `calibrate_costs` for fp64 logits and labels in {0, 1}."""
    parameter_2 = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log a, b
    lbfgs = torch.optim.LBFGS([parameter_2], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        scaled_N = parameter_2[0].exp() * logit_N + parameter_2[1]
        loss: Tensor = F.binary_cross_entropy_with_logits(scaled_N, is_bad_N) + 0.01 * parameter_2.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    lbfgs.step(closure)  # type: ignore[no-untyped-call]
    return float(parameter_2[0].detach().exp()), float(parameter_2[1].detach())
