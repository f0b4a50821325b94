"""The release gate: every figure that a release must reach, with its bound, the reason for it and what to do next.

A failed gate still packages; only the release name is withheld. Figures of the torch model come from the report of
`evaluate`; those named `served` were measured on the file that will be served, through its engine. What is missing,
not a number or not measurable does not pass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import Field

from llm.config import BaseParams, ConfigError
from llm.export.rules import EXPORT, JUDGE, QUANTIZED, RULES, Rule

# Each packaged format, and those who must read it.
CONSUMERS = {
    "hf": ("transformers",),
    "f16": ("openvino", "llamacpp"),
    "q8_0": ("openvino", "llamacpp"),
    "q4_0": ("openvino", "llamacpp"),
}
ENDS = {"value": "", "low": "the interval's lower end ", "high": "the interval's upper end "}


class Tolerance(BaseParams):
    """How far a packaged format, loaded by its own consumer, may be from the fp32 model."""

    bits: float = Field(ge=0, description="relative difference of bits per byte on the held-out sample, at most")
    agreement: float = Field(ge=0, le=1, description="share of positions with the same greedy next token, at least")


class Bounds(BaseParams):
    """What a release must reach. The bounds on KL and costs are the report's, which the policy was trained under."""

    choice: float = Field(0.25, ge=0, le=1, description="multiple choice: the lower end lies above this, guessing")
    reward_gain: float = Field(0.0, ge=0, description="reward over sft, by each judge: the lower end lies above this")
    answered_change: float = Field(
        -0.05, ge=-1, le=0, description="share of harmless prompts answered minus sft's: the value is at least this"
    )
    distinct_ratio: float = Field(0.8, ge=0, le=1, description="share of different answers as part of sft's, at least")
    length_change: float = Field(0.2, gt=0, description="relative change of mean answer length from sft, at most")
    hf: Tolerance = Field(Tolerance(bits=1e-4, agreement=0.995), description="the Hugging Face folder, in fp32")
    f16: Tolerance = Field(Tolerance(bits=1e-3, agreement=0.99), description="the GGUF file of 16-bit weights")
    q8_0: Tolerance = Field(Tolerance(bits=0.01, agreement=0.97), description="the GGUF file of 8 bits: it is served")
    q4_0: Tolerance = Field(Tolerance(bits=0.05, agreement=0.85), description="the GGUF file of 4 bits")
    logit_gap: float = Field(1e-3, gt=0, description="largest difference of a logit between transformers and ours")


@dataclass(frozen=True)
class Figure:
    """A measured figure, with its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Check:
    """One figure against its bound; fields that are None do not apply."""

    name: str
    value: float | None  # None: it was not measured, which does not pass
    bound: float | None
    passed: bool
    why: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    by: float | None = None  # of a failed row: what was judged minus the bound, in the figure's unit
    remedy: str | None = None  # of a failed row: what to do next

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:g}"
        text = f"{'pass' if self.passed else 'FAIL'} | {self.name} | {value} | {self.why}"
        return text if self.passed else f"{text} | next: {self.remedy}"


def check_release(
    evaluation: Mapping[str, Any],
    served: Mapping[str, Any],
    bounds: Bounds,
    principles: Sequence[str],
    min_auroc: float,
) -> list[Check]:
    """Return all checks, in the order of the table.

    Args:    evaluation: `metrics` of reports/evaluate.json.  served: what `package` measured on its files, with
             alignment under the same keys as evaluate's.  principles: those whose cost is bound.
             min_auroc: a cost is measurable when the lower end of its judge's AUROC is above.
    """
    return [
        make_check("bits_per_byte.base", read(evaluation, "bits_per_byte.base"), best_baseline(evaluation)),
        make_check("multiple_choice.sft", read(evaluation, "multiple_choice.sft", "accuracy"), bounds.choice),
        make_check("reward.delta", read(evaluation, "reward", "delta"), bounds.reward_gain),
        make_check("reward.second", read(evaluation, "reward.second", "delta"), bounds.reward_gain),
        make_check("reward.rule", read(evaluation, "reward.rule", "delta"), bounds.reward_gain),
        *_check_alignment(evaluation, evaluation, bounds, principles, min_auroc),
        *_check_files(served, bounds),
        make_check("served.reward", read(served, "reward.second", "delta"), bounds.reward_gain),
        *_check_alignment(served, evaluation, bounds, principles, min_auroc, "served."),
    ]


def gate_metrics(checks: Sequence[Check]) -> dict[str, Any]:
    """Return what reports/package.json holds under `gate`; rows leave out the fields that do not apply."""
    always = ("name", "value", "bound", "passed", "why")
    rows = [{k: v for k, v in asdict(check).items() if v is not None or k in always} for check in checks]
    return {"passed": all(check.passed for check in checks), "checks": rows}


def make_check(name: str, figure: Figure | None, bound: float | None, rule: Rule | None = None) -> Check:
    """Compare a figure, or the end of its interval that its rule names, with the bound."""
    rule = rule or RULES[name]
    judged = None if figure is None else getattr(figure, rule.end)
    if figure is None or judged is None or bound is None:
        missing = "the figure" if figure is None else "its interval" if judged is None else "its bound"
        todo = (
            f"{missing} is missing or no number: run evaluate and package again, on held-out data that hold such items"
        )
        return Check(
            name, None if figure is None else figure.value, bound, False, f"not measured: {rule.why}", remedy=todo
        )
    holds = {
        "below": judged < bound,
        "at most": judged <= bound,
        "above": judged > bound,
        "at least": judged >= bound,
    }[rule.side]
    value, low, high = (None if x is None else round(x, 6) for x in (figure.value, figure.low, figure.high))
    why = f"{ENDS[rule.end]}must be {rule.side} {bound:g}: {rule.why}"
    check = Check(name, value, round(bound, 6), holds, why, low, high, figure.n)
    return check if holds else replace(check, by=round(judged - bound, 6), remedy=rule.remedy)


def _check_alignment(
    metrics: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    bounds: Bounds,
    principles: Sequence[str],
    min_auroc: float,
    prefix: str = "",
) -> list[Check]:
    """Rows that bind the policy and, under the prefix `served.`, the served file just so."""

    def check(name: str, row: str, figure: Figure | None, bound: float | None) -> Check:
        rule = RULES[name]
        if prefix:
            rule = replace(rule, remedy=f"where {row} passes, {QUANTIZED}; else {rule.remedy}")
        return make_check(f"{prefix}{row}", figure, bound, rule)

    ratio = read(metrics, "length.ratio")
    change = None if ratio is None else Figure(abs(ratio.value - 1))
    rows = [
        check("kl", "kl", read(metrics, "kl"), _number(evaluation, "kl.bound")),
        check("length", "length", change, bounds.length_change),
    ]
    for principle in principles:
        row = f"cost.{principle}"
        costly = check("cost", row, read(metrics, row), _number(evaluation, f"{row}.bound"))
        rows.append(_require_measurable(costly, evaluation, row, min_auroc))
    return [
        *rows,
        check("answered", "answered", read(metrics, "answered.change"), bounds.answered_change),
        check("distinct", "distinct", read(metrics, "distinct.ratio"), bounds.distinct_ratio),
    ]


def _require_measurable(check: Check, evaluation: Mapping[str, Any], row: str, bound: float) -> Check:
    """Fail a cost whose judge cannot tell good answers from bad ones, whatever the cost is."""
    auroc = read(evaluation, f"{row}.auroc")
    low = None if auroc is None else auroc.low
    if auroc is not None and low is not None and low > bound and look_up(evaluation, f"{row}.measurable") is True:
        return check
    seen = "is missing" if auroc is None else f"is {auroc.value:.3f}, its interval's lower end {low}"
    return replace(
        check,
        passed=False,
        why=f"not measurable: AUROC of the judging head {seen}; that must be above {bound:g}",
        by=None if low is None else round(low - bound, 6),
        remedy=JUDGE,
    )


def _check_files(served: Mapping[str, Any], bounds: Bounds) -> list[Check]:
    rows = [make_check("served.multiple_choice", read(served, "multiple_choice", "accuracy"), bounds.choice)]
    for kind, engines in CONSUMERS.items():
        tolerance: Tolerance = getattr(bounds, kind)
        remedy = QUANTIZED if kind in ("q8_0", "q4_0") else EXPORT
        for engine in engines:
            at = f"formats.{kind}.{engine}"
            difference = _number(served, f"{at}.difference")
            gap = None if difference is None else Figure(abs(difference))
            for name, figure, bound in (
                ("bits", gap, tolerance.bits),
                ("next", read(served, f"{at}.agreement"), tolerance.agreement),
            ):
                rule = replace(RULES[f"parity.{name}"], remedy=remedy)
                rows.append(make_check(f"parity.{name}.{kind}.{engine}", figure, bound, rule))
    ids = [_check_ids(served, engine) for engine in ("transformers", "openvino", "llamacpp")]
    return [*rows, make_check("parity.logits", read(served, "logit_gap"), bounds.logit_gap), *ids]


def _check_ids(served: Mapping[str, Any], engine: str) -> Check:
    """Return the row of a consumer's tokenizer, which says on what it differs."""
    at = f"ids.{engine}"
    check = make_check(f"parity.ids.{engine}", read(served, at), 1.0, RULES["parity.ids"])
    first = look_up(served, f"{at}.first")
    return check if check.passed or not first else replace(check, why=f"{check.why}; the first difference: {first}")


def best_baseline(report: Mapping[str, Any]) -> float | None:
    """Return the fewest bits per byte that any baseline needs; None when one is missing or not a number."""
    bits = [_number(report, f"baselines.{name}") for name in look_up(report, "baselines") or {}]
    known = [value for value in bits if value is not None]
    return min(known) if known and len(known) == len(bits) else None


def read(report: Mapping[str, Any], path: str, key: str = "value") -> Figure | None:
    """Return the figure at a dotted path: a number, or `{key, low, high, n}`; None when it is missing or not finite.

    Ends may be named after the key, as in `{delta, delta_low, delta_high, n}`.
    """
    node = look_up(report, path)
    if not isinstance(node, Mapping):
        return Figure(float(node)) if _is_number(node) else None
    if not _is_number(node.get(key)):
        return None
    low, high = (node.get(f"{key}_{end}", node.get(end)) for end in ("low", "high"))
    low, high = (float(end) if _is_number(end) else None for end in (low, high))
    return Figure(float(node[key]), low, high, node.get("n"))


def find(report: Mapping[str, Any], path: str) -> float:
    """Return the number at a dotted path of a report; `{value: ...}` stands for its value.

    Raises: ConfigError: there is none.
    """
    value = _number(report, path)
    if value is None:
        raise ConfigError(f"reports/evaluate.json: metrics.{path} is missing or not a number; run evaluate again")
    return value


def look_up(report: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a dotted path of a report, or None."""
    node: Any = report
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _number(report: Mapping[str, Any], path: str) -> float | None:
    figure = read(report, path)
    return None if figure is None else figure.value


def _is_number(node: Any) -> bool:
    return isinstance(node, int | float) and not isinstance(node, bool) and math.isfinite(node)
