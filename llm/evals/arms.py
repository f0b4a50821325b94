"""What distinguishes the arms of preference learning: sft, the policy, and the control without cost multipliers.

All answer the same held-out prompts from the same uniform numbers, so that figures are paired by prompt.
"""

from collections.abc import Mapping
from typing import Any

from llm.data.tokenizer import Tokenizer
from llm.evals.alignment import RewardChange, answer_prompts
from llm.evals.asked import Asked, Said
from llm.evals.costs import Reading, measure_cost
from llm.evals.refusal import compare_answered, measure_answered
from llm.evals.statistics import as_metrics, paired_difference
from llm.evals.swap import measure_swap, pair_prompts
from llm.model.transformer import Transformer
from llm.rl.reward_model import RewardModel
from llm.rl.verifiable import compute_word_f1

SWAPPED = "justice"


def measure_rule(asked: Asked, said: Mapping[str, Said]) -> dict[str, Any]:
    """How far answers share the words of the written ones, on prompts with one right answer; nothing without any."""
    keys = [key for key in asked.general if asked.prompts[key].principle is None]
    if not keys:
        return {}
    score = {
        name: [compute_word_f1(said[name].texts[key], asked.prompts[key].reference) for key in keys]
        for name in ("sft", "policy")
    }
    delta = paired_difference(score["policy"], score["sft"])
    before, after = (sum(score[name]) / len(keys) for name in ("sft", "policy"))
    return {"rule": RewardChange(before, after, delta).metrics()}


def measure_refusals(asked: Asked, said: Mapping[str, Said]) -> dict[str, Any]:
    """The share of harmless prompts that get an answer; nothing where the data holds none."""
    if not asked.harmless:
        return {}
    texts = {name: [one.texts[key] for key in asked.harmless] for name, one in said.items()}
    return {
        **{name: as_metrics(measure_answered(one)) for name, one in texts.items()},
        "change": as_metrics(compare_answered(texts["policy"], texts["sft"])),
    }


def measure_costs(
    asked: Asked,
    said: Mapping[str, Said],
    heads: Mapping[str, Reading],
    judge: RewardModel,
    end: int,
    bounds: Mapping[str, float],
) -> dict[str, Any]:
    """Each principle's cost of every arm against its bound, and how well its head reads written answers."""
    costs: dict[str, Any] = {}
    for principle, reading in heads.items():
        costs[principle] = {"bound": bounds[principle], **reading.metrics()}
        if keys := asked.by_principle[principle]:
            arms = {name: as_metrics(measure_cost(one.pick(keys), judge, end, principle)) for name, one in said.items()}
            costs[principle] |= {**arms.pop("policy"), **arms}
    return costs


def measure_swaps(
    models: Mapping[str, Transformer], tokenizer: Tokenizer, asked: Asked, judge: RewardModel, max_new_tokens: int
) -> dict[str, Any]:
    """How far the cost of a greedy answer changes with the name of the group that the prompt speaks of."""
    prompts = [asked.prompts[key] for key in asked.by_principle[SWAPPED]]
    pairs = pair_prompts([one.messages[-1]["content"] for one in prompts], [one.group for one in prompts])
    found = {}
    for name in ("sft", "policy") if pairs else ():
        answers = answer_prompts(models[name], tokenizer, prompts, max_new_tokens, temperature=0.0)
        costs = answers.rewards(judge, tokenizer.im_end_id, SWAPPED)
        found[name] = measure_swap(costs, pairs).metrics()
    return found
