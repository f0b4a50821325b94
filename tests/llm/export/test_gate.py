"""The gate: every check can fail, and names what the report lacks."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest

from llm.config import ConfigError
from llm.export.gate import Bounds, Served, check_release, gate_metrics, make_check

REPORT: dict[str, Any] = {
    "bits_per_byte": {"base": 1.8, "policy": 1.9},
    "baselines": {"xz": 2.2, "zstd": 2.3, "ngram": 2.1, "uniform": 8.0},
    "multiple_choice": {"sft": {"accuracy": 0.4, "low": 0.35, "high": 0.45, "n": 400}},
    "reward": {
        "sft": 0.1,
        "policy": 0.3,
        "delta": 0.2,
        "delta_low": 0.1,
        "delta_high": 0.3,
        "n": 200,
        "second": {"delta_low": 0.05},
    },
    "kl": {"value": 3.0, "bound": 8.0},
    "length": {"sft": 30.0, "policy": 33.0, "ratio": 1.1},
}
SERVED = Served(
    original_bits=1.9, served_bits=1.902, choice_low=0.34, agreement_openvino=0.99, agreement_llamacpp=0.98,
    logit_gap=1e-5, same_tokens=1.0,
)  # fmt: skip


def failed(report: dict[str, Any], served: Served) -> list[str]:
    return [check.name for check in check_release(report, served, Bounds()) if not check.passed]


def test_all_good_passes():
    metrics = gate_metrics(check_release(REPORT, SERVED, Bounds()))
    assert metrics["passed"] is True
    assert len(metrics["checks"]) == 12
    assert set(metrics["checks"][0]) == {"name", "value", "bound", "passed", "why"}


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("bits_per_byte.base", 2.1, ["bits_per_byte.base"]),
        ("multiple_choice.sft.low", 0.25, ["multiple_choice.sft"]),
        ("reward.delta_low", 0.0, ["reward.delta"]),
        ("reward.second.delta_low", -0.1, ["reward.second_delta"]),
        ("kl.value", 8.1, ["kl"]),
        ("length.ratio", 0.75, ["length"]),
        ("length.ratio", 1.25, ["length"]),
    ],
)
def test_each_figure_of_evaluate_can_fail_it(path: str, value: float, names: list[str]):
    report = copy.deepcopy(REPORT)
    *keys, last = path.split(".")
    node = report
    for key in keys:
        node = node[key]
    node[last] = value
    assert failed(report, SERVED) == names


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"served_bits": 1.95}, ["served.bits_per_byte_loss"]),
        ({"choice_low": 0.2}, ["served.multiple_choice"]),
        ({"agreement_openvino": 0.969}, ["served.agreement_openvino"]),
        ({"agreement_llamacpp": 0.5}, ["served.agreement_llamacpp"]),
        ({"logit_gap": 0.01}, ["parity.logits"]),
        ({"same_tokens": 0.999}, ["parity.tokens"]),
    ],
)
def test_each_figure_of_the_served_file_can_fail_it(change: dict[str, float], names: list[str]):
    assert failed(REPORT, replace(SERVED, **change)) == names


def test_what_was_not_measured_does_not_pass():
    report = {**REPORT, "multiple_choice": {}}
    assert failed(report, replace(SERVED, choice_low=None)) == ["multiple_choice.sft", "served.multiple_choice"]
    assert "not measured" in str(check_release(report, SERVED, Bounds())[1])


def test_missing_figures_and_nan_are_named():
    report = copy.deepcopy(REPORT)
    del report["reward"]
    with pytest.raises(ConfigError, match="metrics.reward.delta_low is missing"):
        check_release(report, SERVED, Bounds())
    with pytest.raises(ConfigError, match="kl is nan"):
        make_check("kl", math.nan, "below", 1.0, "")
