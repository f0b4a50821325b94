"""The release gate: every figure that a release must reach, with its bound and the reason for it.

A failed gate still packages; only the release name is withheld. Figures of the torch model come from the
report of `evaluate`; those named `served` were measured on the file that will be served, through its engine.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llm.config import ConfigError

Side = Literal["below", "at most", "above", "at least"]


@dataclass(frozen=True)
class Check:
    """One figure against its bound."""

    name: str
    value: float | None  # None: it could not be measured, which does not pass
    bound: float
    passed: bool
    why: str

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:g}"
        return f"{'pass' if self.passed else 'FAIL'} | {self.name} | {value} | {self.why}"


@dataclass(frozen=True)
class Served:
    """What was measured on the packaged files; agreement is the share of equal greedy next tokens."""

    original_bits: float  # bits per byte of the fp32 model on the sample
    served_bits: float  # the same sample through the served file
    choice_low: float | None  # lower end of the served file's multiple-choice interval; None without questions
    agreement_openvino: float
    agreement_llamacpp: float
    logit_gap: float  # transformers against ours, fp32
    same_tokens: float  # share of texts and chats with equal ids in transformers


@dataclass(frozen=True)
class Bounds:
    """What the measured files must reach."""

    agreement: float = 0.97
    logit_gap: float = 1e-3
    bits_loss: float = 0.01
    length_change: float = 0.2


def check_release(report: Mapping[str, Any], served: Served, bounds: Bounds) -> list[Check]:
    """Return all checks, of evaluate's metrics and of the served file.

    Raises: ConfigError: evaluate's metrics lack a figure that the gate needs.
    """
    return _check_evaluation(report, bounds) + _check_files(report, served, bounds)


def gate_metrics(checks: list[Check]) -> dict[str, Any]:
    """Return what reports/package.json holds under `gate`."""
    return {"passed": all(check.passed for check in checks), "checks": [asdict(check) for check in checks]}


def make_check(name: str, value: float | None, side: Side, bound: float, why: str) -> Check:
    """Compare a figure with its bound; what could not be measured does not pass."""
    why = f"must be {side} {bound:g}: {why}"
    if value is None:
        return Check(name, None, round(bound, 6), False, why)
    holds = {
        "below": value < bound,
        "at most": value <= bound,
        "above": value > bound,
        "at least": value >= bound,
    }[side]
    if not math.isfinite(value):
        raise ConfigError(f"gate: {name} is {value}, not a number; run evaluate again")
    return Check(name, round(value, 6), round(bound, 6), holds, why)


def _check_evaluation(report: Mapping[str, Any], bounds: Bounds) -> list[Check]:
    length = find(report, "length.ratio")
    return [
        make_check(
            "bits_per_byte.base",
            find(report, "bits_per_byte.base"),
            "below",
            best_baseline(report),
            "the base model must code held-out text better than every compressor and the n-gram",
        ),
        make_check(
            "multiple_choice.sft",
            find(report, "multiple_choice.sft.low") if _node(report, "multiple_choice") else None,
            "above",
            0.25,
            "the interval of the four-way choice must lie above guessing",
        ),
        make_check(
            "reward.delta",
            find(report, "reward.delta_low"),
            "above",
            0.0,
            "the policy's reward on held-out prompts must exceed sft's, and the interval exclude zero",
        ),
        make_check(
            "reward.second_delta",
            find(report, "reward.second.delta_low"),
            "above",
            0.0,
            "the same under a reward model that was trained on other pairs and that the policy never met",
        ),
        make_check(
            "kl",
            find(report, "kl.value"),
            "at most",
            find(report, "kl.bound"),
            "the policy must stay near sft: a high reward far away is reward hacking",
        ),
        make_check(
            "length",
            abs(length - 1),
            "at most",
            bounds.length_change,
            "a reward model can be pleased by length alone: the policy's answers may differ that much from sft's",
        ),
    ]


def _check_files(report: Mapping[str, Any], served: Served, bounds: Bounds) -> list[Check]:
    loss = served.served_bits - served.original_bits
    return [
        make_check(
            "served.bits_per_byte_loss",
            loss / served.original_bits,
            "at most",
            bounds.bits_loss,
            "relative loss of the served file against the fp32 model, on the sample",
        ),
        make_check(
            "served.multiple_choice",
            served.choice_low,
            "above",
            0.25,
            "the served file, through its engine, must choose better than guessing",
        ),
        make_check(
            "served.agreement_openvino",
            served.agreement_openvino,
            "at least",
            bounds.agreement,
            "given the same prefix, OpenVINO's greedy token from the served file must be the fp32 model's",
        ),
        make_check(
            "served.agreement_llamacpp",
            served.agreement_llamacpp,
            "at least",
            bounds.agreement,
            "the same for llama.cpp",
        ),
        make_check(
            "parity.logits",
            served.logit_gap,
            "at most",
            bounds.logit_gap,
            "largest difference of a logit between transformers and ours, both fp32",
        ),
        make_check(
            "parity.tokens",
            served.same_tokens,
            "at least",
            1.0,
            "transformers' tokenizer and chat template must give the ids that the model was trained on",
        ),
    ]


def best_baseline(report: Mapping[str, Any]) -> float:
    """Return the fewest bits per byte that any baseline needs."""
    baselines = _node(report, "baselines")
    return min(find(baselines, name) for name in baselines)


def find(report: Mapping[str, Any], path: str) -> float:
    """Return the number at a dotted path of a report; `{value: ...}` stands for its value."""
    node = _node(report, path)
    if isinstance(node, Mapping):
        node = node.get("value")
    if not isinstance(node, int | float):
        raise ConfigError(f"reports/evaluate.json: metrics.{path} is {node!r}, not a number; run evaluate again")
    return float(node)


def _node(report: Mapping[str, Any], path: str) -> Any:
    node: Any = report
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            raise ConfigError(f"reports/evaluate.json: metrics.{path} is missing; run evaluate again")
        node = node[key]
    return node
