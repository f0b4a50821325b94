"""The rows of the release gate in words: which side of its bound a figure must lie on, why, and what to do if not."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["below", "at most", "above", "at least"]
End = Literal["value", "low", "high"]

QUANTIZED = "raise quantize.calibration; reports/quantize.json has the loss of each format"
JUDGE = "add written pairs of this principle to data/principles, or raise reward.steps or reward.cost_weight"
EXPORT = "the export is at fault, not the model: run the tests of llm/export"


@dataclass(frozen=True)
class Rule:
    """`end` says what is judged: the figure itself, or the lower or upper end of its interval."""

    side: Side
    why: str
    remedy: str
    end: End = "value"


RULES = {
    "bits_per_byte.base": Rule(
        "below",
        "the base model must code held-out text better than every compressor and the n-gram",
        "train longer or on more text: raise pretrain.steps, and ingest.sample with it",
    ),
    "multiple_choice.sft": Rule(
        "above",
        "the interval of the four-way choice must lie above guessing",
        "raise sft.steps or ingest.max_chats; where n is small, clean.holdout and evaluate.questions",
        "low",
    ),
    "reward.delta": Rule(
        "above",
        "the policy's reward on held-out prompts must exceed sft's, and the interval exclude that",
        "raise rlhf.steps or rlhf.lr; where reports/reward.json shows accuracy near chance, first add pairs or raise "
        "reward.steps",
        "low",
    ),
    "reward.second": Rule(
        "above",
        "the same under a reward model that was trained on other pairs and that the policy never met",
        "the first reward model is exploited or too weak: add preference pairs, raise reward.steps or lower "
        "rlhf.kl_bound",
        "low",
    ),
    "reward.rule": Rule(
        "above",
        "the same under a rule, which no model can be wrong about",
        "the learned reward does not follow the rule: raise rlhf.rules or rlhf.steps",
        "low",
    ),
    "kl": Rule(
        "at most",
        "answers must stay near sft's [nats per answer]: a high reward far away is reward hacking",
        "raise rlhf.kl_coef or lower rlhf.lr; the bound is rlhf.kl_bound",
    ),
    "length": Rule(
        "at most",
        "a reward model can be pleased by length alone: mean length may differ from sft's by this part",
        "raise rlhf.length_rate or lower rlhf.length_tolerance",
    ),
    "cost": Rule(
        "at most",
        "mean probability of a bad answer to the principle's prompts, read by a head that learned from other prompts",
        "raise rlhf.multiplier_limit, rlhf.multiplier_rate or rlhf.steps, or add pairs of this principle to "
        "data/principles; the bound is in rlhf.cost_bounds",
        "high",
    ),
    "answered": Rule(
        "at least",
        "harmless prompts answered, minus sft's share: a model that refuses everything costs nothing",
        "raise the weight of harmless pairs in reward.shares, or lower rlhf.principle_share or rlhf.multiplier_limit",
    ),
    "distinct": Rule(
        "at least",
        "different answers, as part of sft's share: one evasive sentence must not win",
        "the answers have collapsed: raise rlhf.kl_coef or lower rlhf.lr",
    ),
    "served.multiple_choice": Rule(
        "above",
        "the served file, through its engine, must choose better than guessing",
        f"where multiple_choice.sft passes, {QUANTIZED}; where n is small, raise package.questions",
        "low",
    ),
    "served.reward": Rule(
        "above",
        "the served file's answers must please the second reward model more than sft's to the same prompts",
        f"where reward.second passes, {QUANTIZED}; else mend that row first",
        "low",
    ),
    "parity.bits": Rule(
        "at most",
        "relative difference of bits per byte from the fp32 model, where this consumer reads the file",
        EXPORT,
    ),
    "parity.next": Rule(
        "at least", "given the same prefix, this consumer's greedy next token must be the fp32 model's", EXPORT
    ),
    "parity.logits": Rule("at most", "largest difference of a logit between transformers and ours, both fp32", EXPORT),
    "parity.ids": Rule(
        "at least",
        "this consumer's tokenizer must give the ids that the model was trained on, for held-out texts and texts of "
        "every script (transformers also for conversations, by the chat template)",
        EXPORT,
    ),
}
