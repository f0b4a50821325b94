"""Reward: preference pairs -> two reward models that share no prompt.

The first is what rlhf optimises.  The second learns from the other half of the prompts, and is there to tell a
policy that has become better from one that has found out what the first likes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from llm.config import StageParams, require
from llm.data.schema import hash_share
from llm.data.tokenizer import Tokenizer
from llm.evals.discrimination import is_measurable, measure_pairs
from llm.evals.reward_report import judge_pairs, summarise_pairs
from llm.model.folder import load_model
from llm.rl.pairs import Pair, plan_batches, read_split, tokenize_pairs
from llm.rl.precision import compute_in
from llm.rl.reward_model import HEADS, PRINCIPLES, RewardModel
from llm.rl.reward_training import RewardConfig, train_reward_model
from llm.train.trace import write_trace
from stages.plumbing.stage import Paths, main

CALIBRATION_SHARE = 0.2  # of the pairs of principles


class Params(RewardConfig, StageParams):
    max_len_tokens: int = Field(160, ge=8, le=1 << 20, description="longer pairs are left out and counted")
    held_out_pairs: int = Field(200, ge=1, le=10**6, description="most held-out pairs that are judged, per kind")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    tokenizer = Tokenizer.load(paths.deps["models/sft"])
    path = paths.deps["data/clean"] / "preferences.parquet"
    rows = {split: read_split(path, split) for split in ("train", "val")}
    groups = {row["id"]: row["group"] for split in rows for row in rows[split]}
    pairs = {split: tokenize_pairs(tokenizer, rows[split], params.max_len_tokens) for split in rows}
    held_out = take_per_kind(pairs["val"], params.held_out_pairs)
    metrics: dict[str, Any] = {
        "pairs": {split: len(kept) for split, kept in pairs.items()},
        "too_long": {split: len(rows[split]) - len(kept) for split, kept in pairs.items()},
    }
    margins = []
    for half, (name, folder) in enumerate((("first", Path(".")), ("second", Path("second")))):
        out = paths.outs["models/reward"] / folder
        mine = [pair for pair in pairs["train"] if pair.half == half]
        require(
            bool(mine),
            f"data/clean holds {len(pairs['train'])} training pairs of at most reward.max_len_tokens="
            f"{params.max_len_tokens} tokens, too few for two reward models: raise it or add preference data",
        )
        model = RewardModel(load_model(paths.deps["models/sft"]))
        spared = [pair for pair in mine if is_spared(pair)]
        learned = [pair for pair in mine if not is_spared(pair)]
        batches = plan_batches(learned, params.steps, params.batch_pairs, params.shares, params.base.seed + half)
        trace = train_reward_model(
            model, batches, spared, params, params.base, paths.scratch / name, paths.follow(name)
        )
        with compute_in(params.base.torch_dtype, torch.device("cpu")):
            model.readable = name_readable(model, spared, groups)
            judged = judge_pairs(model, held_out)
        model.save(out)
        tokenizer.save(out)
        write_trace(out, trace)
        margins.append(judged[:, 0, 0] - judged[:, 1, 0])
        metrics[name] = {
            "pairs": len(mine),
            "final_loss": trace[-1]["loss"],
            "readable": model.readable,
            **summarise_pairs(held_out, [groups[pair.id] for pair in held_out], judged),
        }
    if len(held_out) > 1:
        metrics["correlation_of_margins"] = correlate(*margins)
    return metrics


def is_spared(pair: Pair) -> bool:
    """Say whether a pair is kept from training, to calibrate the cost heads on."""
    return pair.principle is not None and hash_share("calibration", pair.id) < CALIBRATION_SHARE


def name_readable(model: RewardModel, spared: Sequence[Pair], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Return of which kinds of prompts each cost head tells good from bad answers, on pairs it was not trained on."""
    readable: dict[str, list[str]] = {}
    for principle in PRINCIPLES:
        for kind in sorted({pair.kind for pair in spared if pair.principle == principle}):
            own = [pair for pair in spared if (pair.principle, pair.kind) == (principle, kind)]
            costs = judge_pairs(model, own)[:, :, HEADS.index(principle)]
            if is_measurable(measure_pairs(costs, [groups[pair.id] for pair in own])):
                readable.setdefault(principle, []).append(kind)
    return readable


def take_per_kind(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """Return the first pairs of each kind; rows come in the order of their ids, which are hashes."""
    by_kind: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_kind.setdefault(pair.kind, []).append(pair)
    return [pair for kind in sorted(by_kind) for pair in by_kind[kind][:limit]]


def correlate(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation; 0 when one side does not vary."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


if __name__ == "__main__":
    main(Params, run)
