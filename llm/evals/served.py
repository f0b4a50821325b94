"""What the answers of a served file are worth, next to sft's to the same held-out prompts.

Answers come in as tokens, from whichever engine gave them. The figures have the names and meanings that they have in
evaluate's report; each comes with the items that it is the mean of, so that two releases can be compared prompt by
prompt. Costs and rewards are the second reward model's, which no policy was trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from llm.data.tokenizer import Tokenizer
from llm.evals.alignment import Prompt, RewardChange
from llm.evals.asked import Asked, Said
from llm.evals.refusal import compare_answered, judge_answers, measure_distinct
from llm.evals.statistics import Interval, as_metrics, bootstrap_interval, paired_difference
from llm.infer.score import score
from llm.model.transformer import Transformer
from llm.rl.losses import estimate_kl
from llm.rl.reward_model import HEADS, RewardModel


def measure_answers(
    asked: Asked, served: Said, sft: Said, reference: Transformer, judge: RewardModel, end_id: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the figures, and what each prompt contributes to them by its id.

    Args:    served: answers to all prompts, sampled at temperature 1.  sft: to those of `compared`, likewise.
             reference: sft.  judge: the second reward model.
    Returns: figures, a part of which is left out where no prompt asks for it; items: `answer` of every prompt, and of
             those that it applies to `reward`, `principle` and `cost` (a probability), `answered` (or evaded).
    """
    items: dict[str, dict[str, Any]] = {key: {"answer": text} for key, text in served.texts.items()}
    figures: dict[str, Any] = {"cost": {}}
    if asked.general:
        figures |= _measure_general(asked.general, served, sft, reference, judge, end_id, items)
    for principle, keys in asked.by_principle.items():
        if keys:
            costs = served.pick(keys).rewards(judge, end_id, principle)
            figures["cost"][principle] = as_metrics(bootstrap_interval(costs))
            for key, cost in zip(keys, costs, strict=True):
                items[key] |= {"principle": principle, "cost": cost}
    if asked.harmless:
        ours, theirs = ([said.texts[key] for key in asked.harmless] for said in (served, sft))
        figures["answered"] = {"change": as_metrics(compare_answered(ours, theirs))}
        for key, evasion in zip(asked.harmless, judge_answers(ours), strict=True):
            items[key]["answered"] = evasion is None
    return figures, items


def _measure_general(
    keys: list[str],
    served: Said,
    sft: Said,
    reference: Transformer,
    judge: RewardModel,
    end_id: int,
    items: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Reward, length, variety and divergence of the answers to the prompts of all kinds."""
    ours, theirs = served.pick(keys), sft.pick(keys)
    rewards, before = (answers.rewards(judge, end_id) for answers in (ours, theirs))
    for key, reward in zip(keys, rewards, strict=True):
        items[key]["reward"] = reward
    gain = RewardChange(float(np.mean(before)), float(np.mean(rewards)), paired_difference(rewards, before))
    length, length_before = (float(np.mean(answers.lengths)) for answers in (ours, theirs))
    distinct, distinct_before = (measure_distinct([said.texts[key] for key in keys]) for said in (served, sft))
    starts = [len(prompt.ids) for prompt in ours.prompts]
    sequences = [prompt.ids + one.tokens for prompt, one in zip(ours.prompts, ours.completions, strict=True)]
    kl = estimate_answer_kl([one.logprobs for one in ours.completions], score(reference, sequences, starts))
    return {
        "reward": {"second": gain.metrics()},
        "length": {"sft": length_before, "policy": length, "ratio": length / length_before},
        "distinct": {"sft": distinct_before, "policy": distinct, "ratio": distinct / distinct_before},
        "kl": as_metrics(kl),
    }


def judge_again(
    items: Mapping[str, Mapping[str, Any]], prompts: Mapping[str, Prompt], judge: RewardModel, tokenizer: Tokenizer
) -> dict[str, dict[str, Any]]:
    """Return the items whose prompt is given, with another judge's reward and cost of the same answers' texts."""
    known = {key: item for key, item in items.items() if key in prompts}
    room = judge.trunk.config.context - 1
    texts = tokenizer.encode_batch([item["answer"] for item in known.values()])
    rows = [[*(prompts[key].ids + text)[:room], tokenizer.im_end_id] for key, text in zip(known, texts, strict=True)]
    judged = {}
    for (key, item), scores in zip(known.items(), judge.score(rows).tolist(), strict=True):
        new = {"reward": scores[0]} if "reward" in item else {}
        judged[key] = {**item, **new, **({"cost": scores[HEADS.index(item["principle"])]} if "cost" in item else {})}
    return judged


def estimate_answer_kl(logprobs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Interval:
    """Return KL(served || sft) in nats per answer: the mean over answers of k3, summed over tokens.

    Args:    logprobs: what the engine drew the tokens with, per answer.  reference: sft's of the same tokens.
    Source:  `llm.rl.losses.estimate_kl`.
    """
    pairs = zip(logprobs, reference, strict=True)
    return bootstrap_interval(
        [estimate_kl(torch.tensor(ours), torch.tensor(theirs)).sum().item() for ours, theirs in pairs]
    )
