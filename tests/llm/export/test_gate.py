"""The gate: every check can fail, says by how much and what to do; what is missing or not measurable fails closed."""

import copy
import importlib
import math
import re
from typing import Any

import pytest
from pydantic import ValidationError

from llm.evals.discrimination import MIN_AUROC
from llm.export.gate import Bounds, Check, check_release, gate_metrics
from llm.export.rules import EXPORT, JUDGE, QUANTIZED, RULES
from llm.rl.reward_model import PRINCIPLES
from tests.llm.export.gate_figures import EVALUATION, SERVED


def change(report: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of the report with one figure changed; None takes it out."""
    report = copy.deepcopy(report)
    *keys, last = path.split(".")
    node = report
    for key in keys:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return report


def failed(evaluation: dict[str, Any], served: dict[str, Any], min_auroc: float = MIN_AUROC) -> dict[str, Check]:
    checks = check_release(evaluation, served, Bounds(), PRINCIPLES, min_auroc)
    return {check.name: check for check in checks if not check.passed}


def test_all_good_passes():
    metrics = gate_metrics(check_release(EVALUATION, SERVED, Bounds(), PRINCIPLES, MIN_AUROC))
    assert metrics["passed"] is True
    rows = {row["name"]: row for row in metrics["checks"]}
    assert len(rows) == len(metrics["checks"]) == 5 + 8 + (1 + 14 + 1 + 3) + 1 + 8
    assert set(rows["parity.logits"]) == {"name", "value", "bound", "passed", "why"}
    assert rows["reward.delta"] == {
        "name": "reward.delta", "value": 0.2, "low": 0.1, "high": 0.4, "n": 400, "bound": 0.0, "passed": True,
        "why": "the interval's lower end must be above 0: the policy's reward on held-out prompts must exceed sft's, "
        "and the interval exclude that",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "name", "by"),
    [
        ("bits_per_byte.base", 2.25, "bits_per_byte.base", 0.15),
        ("multiple_choice.sft.low", 0.25, "multiple_choice.sft", 0.0),
        ("reward.delta_low", -0.02, "reward.delta", -0.02),
        ("reward.second.delta_low", -0.1, "reward.second", -0.1),
        ("reward.rule.delta_low", 0.0, "reward.rule", 0.0),
        ("kl.value", 8.5, "kl", 0.5),
        ("length.ratio", 0.75, "length", 0.05),
        ("length.ratio", 1.25, "length", 0.05),
        ("cost.justice.high", 0.23, "cost.justice", 0.03),
        ("answered.change.value", -0.06, "answered", -0.01),
        ("distinct.ratio", 0.7, "distinct", -0.1),
    ],
)
def test_each_figure_of_evaluate_can_fail_it(path: str, value: float, name: str, by: float):
    rows = failed(change(EVALUATION, path, value), SERVED)
    assert set(rows) == {name}
    assert rows[name].by == pytest.approx(by, abs=1e-9)
    assert rows[name].remedy


@pytest.mark.parametrize(
    ("path", "value", "name", "by"),
    [
        ("formats.hf.transformers.difference", 0.0021, "parity.bits.hf.transformers", 0.002),
        ("formats.hf.transformers.agreement", 0.985, "parity.next.hf.transformers", -0.01),
        ("formats.f16.openvino.difference", -0.003, "parity.bits.f16.openvino", 0.002),
        ("formats.f16.llamacpp.agreement", 0.98, "parity.next.f16.llamacpp", -0.01),
        ("formats.q8_0.openvino.difference", 0.03, "parity.bits.q8_0.openvino", 0.02),
        ("formats.q8_0.openvino.agreement", 0.96, "parity.next.q8_0.openvino", -0.01),
        ("formats.q8_0.llamacpp.agreement", 0.5, "parity.next.q8_0.llamacpp", -0.47),
        ("formats.q4_0.llamacpp.difference", 0.06, "parity.bits.q4_0.llamacpp", 0.01),
        ("formats.q4_0.openvino.agreement", 0.8, "parity.next.q4_0.openvino", -0.05),
        ("multiple_choice.low", 0.2, "served.multiple_choice", -0.05),
        ("logit_gap", 0.011, "parity.logits", 0.01),
        ("ids.transformers.value", 0.999, "parity.ids.transformers", -0.001),
        ("ids.llamacpp.value", 0.5, "parity.ids.llamacpp", -0.5),
        ("reward.second.delta_low", -0.1, "served.reward", -0.1),
        ("kl.value", 9.0, "served.kl", 1.0),
        ("length.ratio", 1.5, "served.length", 0.3),
        ("cost.autonomy.high", 0.5, "served.cost.autonomy", 0.3),
        ("answered.change.value", -0.25, "served.answered", -0.2),
        ("distinct.ratio", 0.1, "served.distinct", -0.7),
    ],
)
def test_each_figure_of_the_served_file_can_fail_it(path: str, value: float, name: str, by: float):
    rows = failed(EVALUATION, change(SERVED, path, value))
    assert set(rows) == {name}
    assert rows[name].by == pytest.approx(by, abs=1e-9)
    assert rows[name].remedy
    assert "next: " in str(rows[name])


def test_a_row_of_the_served_file_says_first_to_look_at_the_policys():
    row = failed(EVALUATION, change(SERVED, "kl.value", 9.0))["served.kl"]
    assert row.remedy is not None
    assert row.remedy.startswith("where kl passes, raise quantize.calibration")
    assert "rlhf.kl_coef" in row.remedy


def test_a_tokenizer_that_differs_says_on_what():
    ids = {"value": 0.997, "n": 378, "first": "text 3, token 0: '\\u0e33' is [5], not [7]"}
    row = failed(EVALUATION, change(SERVED, "ids.openvino", ids))["parity.ids.openvino"]
    assert row.n == 378
    assert row.why.endswith("; the first difference: text 3, token 0: '\\u0e33' is [5], not [7]")


def test_what_rounding_is_to_blame_for_has_another_remedy_than_the_export():
    served = change(change(SERVED, "formats.q8_0.openvino.agreement", 0.1), "formats.f16.openvino.agreement", 0.1)
    rows = failed(EVALUATION, served)
    assert rows["parity.next.q8_0.openvino"].remedy == QUANTIZED
    assert rows["parity.next.f16.openvino"].remedy == EXPORT


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("bits_per_byte", ["bits_per_byte.base"]),
        ("baselines", ["bits_per_byte.base"]),
        ("multiple_choice.sft", ["multiple_choice.sft"]),
        ("reward", ["reward.delta", "reward.second", "reward.rule"]),
        ("kl.bound", ["kl", "served.kl"]),
        ("length", ["length"]),
        ("cost.autonomy.high", ["cost.autonomy"]),
        ("cost.autonomy.bound", ["cost.autonomy", "served.cost.autonomy"]),
        ("cost", [f"{at}cost.{name}" for at in ("", "served.") for name in PRINCIPLES]),
        ("answered", ["answered"]),
        ("distinct", ["distinct"]),
    ],
)
def test_what_is_missing_fails_closed(path: str, names: list[str]):
    rows = failed(change(EVALUATION, path, None), SERVED)
    assert sorted(rows) == sorted(names)
    for row in rows.values():
        assert row.why.startswith(("not measured: ", "not measurable: "))
        assert row.remedy


def test_an_empty_report_fails_every_row_and_does_not_crash():
    checks = check_release({}, {}, Bounds(), PRINCIPLES, MIN_AUROC)
    assert not any(check.passed for check in checks)
    assert all(check.value is None and check.remedy for check in checks)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.1", True])
def test_what_is_no_number_fails_closed(value: object):
    (row,) = failed(change(EVALUATION, "distinct.ratio", value), SERVED).values()
    assert row.value is None
    assert row.why.startswith("not measured")
    assert "bits_per_byte.base" in failed(change(EVALUATION, "baselines.xz", math.nan), SERVED)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("cost.justice.measurable", False),
        ("cost.justice.measurable", None),
        ("cost.justice.auroc", None),
        ("cost.justice.auroc.low", 0.8),
    ],
)
def test_a_cost_whose_judge_cannot_tell_is_not_measurable(path: str, value: object):
    rows = failed(change(EVALUATION, path, value), SERVED)
    assert set(rows) == {"cost.justice", "served.cost.justice"}
    for row in rows.values():
        assert row.why.startswith("not measurable: AUROC of the judging head")
        assert row.remedy is not None
        assert "reward.steps" in row.remedy
    if path.endswith("low"):
        assert rows["cost.justice"].by == 0.0
        assert failed(change(EVALUATION, path, value), SERVED, min_auroc=0.7) == {}


def test_the_interval_of_a_cost_decides_and_not_its_value():
    assert failed(change(EVALUATION, "cost.justice.high", 0.2), SERVED) == {}
    (row,) = failed(change(EVALUATION, "cost.justice.high", 0.21), SERVED).values()
    assert row.value == 0.1
    assert row.bound == 0.2
    assert row.by == pytest.approx(0.01)


def test_bounds_are_bounded():
    with pytest.raises(ValidationError):
        Bounds(answered_change=0.1)
    with pytest.raises(ValidationError):
        Bounds(distinct_ratio=1.5)


@pytest.mark.parametrize("remedy", [*(rule.remedy for rule in RULES.values()), JUDGE])
def test_a_remedy_names_params_that_exist(remedy: str):
    assert remedy.strip()
    for stage, key in re.findall(
        r"(?<!/)\b(ingest|clean|pretrain|sft|reward|rlhf|evaluate|quantize|package)\.([a-z_]+)", remedy
    ):
        params = importlib.import_module(f"stages.{stage}").Params
        is_row = f"{stage}.{key}" in RULES  # `reward.second` is a row of the table
        assert is_row or key in params.model_fields, f"{stage}.{key}"
