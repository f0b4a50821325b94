"""Alignment, safety and quantization in the report: every caption follows from the figures beside it, both ways."""

from pathlib import Path
from typing import Any

import pytest

from stages.plumbing.report_alignment import describe_alignment, describe_judge
from stages.plumbing.report_quantization import describe_card
from stages.plumbing.report_safety import describe_safety
from stages.plumbing.report_tasks import describe_tasks
from stages.plumbing.report_traces import describe_traces
from tests.stages.report_metrics import (
    PRINCIPLES,
    figure,
    gain,
    make_cost,
    make_evaluation,
    make_quantization,
    make_reward,
    make_task,
    make_trace,
    write_run,
    write_trace,
)


def judge_safety(**costs: dict[str, Any]) -> dict[str, Any]:
    """The section's claim and caption, and caption and state of each principle."""
    evaluation = make_evaluation()
    evaluation["cost"] |= costs
    found = describe_safety(evaluation, {})
    assert found is not None
    each = {cost["name"]: (cost["state"], cost["caption"]) for cost in found["costs"]}
    return {"claim": found["claim"], "caption": found["caption"], **each}


def caption_plot(title: str, **changed: Any) -> str:
    found = describe_safety({**make_evaluation(), **changed}, {})
    assert found is not None
    return str(next(plot["caption"] for plot in found["plots"] if plot["title"].startswith(title)))


def caption_traces(root: Path) -> dict[str, str]:
    found = describe_traces(root, make_evaluation(), {})
    assert found is not None
    return {row["title"]: row["caption"] for row in found["rows"]}


def test_costs_that_hold_because_of_the_multipliers() -> None:
    found = judge_safety()
    assert found["claim"] == "Every cost lies at or under its bound"
    assert "Every interval ends at or under its bound, the dashed line." in found["caption"]
    assert "over the bound for beneficence, non-maleficence, autonomy and justice" in found["caption"]
    assert "not shown to work" not in found["caption"]
    assert found["justice"] == (
        "under by 0.060",
        "Without multipliers 0.52, over the bound: the multiplier holds it down.",
    )


def test_a_cost_over_its_bound_is_named_with_how_much() -> None:
    found = judge_safety(autonomy=make_cost(0.27))
    assert found["claim"] == "Over its bound: autonomy by 0.070"
    assert "Every interval ends" not in found["caption"]
    assert found["autonomy"][0] == "over by 0.070"
    assert "did not hold it" in found["autonomy"][1]


def test_an_interval_that_reaches_over_the_bound_is_said_to() -> None:
    found = judge_safety(autonomy=make_cost(0.18))
    assert found["claim"] == "Not certainly under its bound: autonomy"
    assert found["autonomy"][0] == "under by 0.020, not for certain"
    assert "The interval reaches over the bound for autonomy." in found["caption"]
    assert "reaches 0.010 over the bound" in found["autonomy"][1]


def test_a_control_within_the_bound_shows_no_constraint() -> None:
    found = judge_safety(**{name: make_cost(control=0.15) for name in PRINCIPLES})
    assert "the constraint is not shown to work" in found["caption"]
    assert "lies over the bound for" not in found["caption"]
    assert "the data does not tempt the reward here" in found["justice"][1]
    unsure = judge_safety(justice=make_cost(control=0.22))
    assert "For justice it is over without them, but by no more than its interval" in unsure["caption"]
    assert "weak evidence" in unsure["justice"][1]


def test_without_a_control_arm_nothing_is_claimed_of_the_constraint() -> None:
    found = judge_safety(**{name: {k: v for k, v in make_cost().items() if k != "control"} for name in PRINCIPLES})
    assert "No arm with multipliers at zero was measured" in found["caption"]
    assert found["justice"][1] == "The arm without multipliers was not measured."


def test_a_judge_that_cannot_tell_makes_a_principle_not_measurable() -> None:
    found = judge_safety(justice=make_cost(auroc=0.78))
    assert found["claim"] == "Not measurable: justice"
    assert found["justice"][0] == "not measurable"
    assert "as low as 0.76" in found["justice"][1]
    assert "for beneficence, non-maleficence and autonomy." in found["caption"], "justice is left out of all claims"
    both = judge_safety(justice=make_cost(0.3, auroc=0.78), autonomy=make_cost(0.27))
    assert both["claim"] == "Over its bound: autonomy by 0.070; not measurable: justice"


def test_a_cost_that_was_not_measured_is_named() -> None:
    found = judge_safety(non_maleficence={"value": None, "bound": 0.2})
    assert found["claim"] == "Not measured: non-maleficence"
    assert "Every interval" not in found["caption"]
    nothing = describe_safety({"cost": {"justice": {"value": None}}}, {})
    assert nothing is not None
    assert nothing["claim"] == "Not measured: justice"
    assert nothing["caption"] == ""


def test_the_judges_auroc_may_come_from_the_reward_report() -> None:
    evaluation = make_evaluation()
    for cost in evaluation["cost"].values():
        del cost["auroc"], cost["measurable"]
    silent = describe_safety(evaluation, {})
    told = describe_safety(evaluation, make_reward())
    assert silent is not None
    assert told is not None
    assert silent["judges"] is None
    assert "No report says whether the judge" in silent["caption"]
    assert "Every lower bound is above 0.8" in told["judges"]["caption"]


def test_over_refusal_is_measured_against_its_limit() -> None:
    answered = make_evaluation()["answered"]
    assert "still answered" in caption_plot("Harmless")
    crossing = caption_plot("Harmless", answered={**answered, "change": figure(-0.04, 0.02)})
    assert "the interval reaches beyond it" in crossing
    refusing = caption_plot("Harmless", answered={**answered, "change": figure(-0.2, 0.02)})
    assert "Over-refusal: it lies 15 beyond the limit" in refusing


def test_sameness_unfairness_and_memory_are_told_both_ways() -> None:
    assert "it repeats itself" not in caption_plot("Different")
    assert "30 % fewer" in caption_plot("Different", distinct={"sft": 0.9, "policy": 0.63, "ratio": 0.7})
    assert "it repeats itself" in caption_plot("Different", distinct={"sft": 0.9, "policy": 0.63, "ratio": 0.7})
    swap = {"sft": figure(0.03, 0.01), "policy": figure(0.09, 0.01)}
    assert "less even-handed" in caption_plot("Cost moved", swap=swap)
    assert "No difference" in caption_plot("Cost moved", swap={**swap, "policy": figure(0.04, 0.01)})
    memory = make_evaluation()["memorisation"]
    assert "no memorisation shows" in caption_plot("Training text")
    told = caption_plot("Training text", memorisation={**memory, "difference": figure(0.2, 0.05)})
    assert "by 0.20: it has memorised some" in told


def test_the_gain_counts_only_when_every_judge_sees_it() -> None:
    def claim(**judges: Any) -> tuple[str, str]:
        found = describe_alignment({"reward": {**gain(0.6), **judges}})
        assert found is not None
        return found["claim"], found["caption"]

    assert "in the eyes of its own judge" in claim()[0]
    assert "Not asked: the second reward model and the rule." in claim()[1]
    assert "the second reward model agrees" in claim(second=gain(0.5))[0]
    assert "the second reward model not" in claim(second=gain(0.05), rule=gain(0.3))[0]
    assert "the rule not" in claim(second=gain(0.5), rule=gain(-0.3))[0]
    assert "has not raised the reward for certain" in claim(delta_low=-0.1, second=gain(0.5))[0]
    assert "the bounds cost 0.40 of reward" in claim(control=gain(1.0))[1]
    assert "no reward that shows" in claim(control=gain(0.65))[1]
    assert describe_alignment({"reward": {"delta": None}}) is None


def test_the_judge_is_judged_by_kind_and_by_its_confidence() -> None:
    reward = make_reward()
    found = describe_judge(reward)
    assert found is not None
    assert "It ranks truncated and principle better than by chance." in found["caption"]
    assert "On sibling its interval includes chance" in found["caption"]
    assert found["n"] == 800, "`all` counts the same pairs again"
    calibration = reward["first"]["calibration"]
    calibration["ece"] = 0.02
    assert "may be read as a probability" in describe_judge(reward)["calibration"]["caption"]  # type: ignore[index]
    reward["first"]["calibration"] = {"ece": 0.1, "bins": [{"confidence": 0.6, "accuracy": 0.7, "n": 9}]}
    assert "it is less sure than it is right" in describe_judge(reward)["calibration"]["caption"]  # type: ignore[index]
    reward["first"]["calibration"]["bins"] = [{"confidence": None, "accuracy": None, "n": 0}]
    assert describe_judge(reward)["calibration"] is None  # type: ignore[index]


def test_models_are_told_apart_by_intervals_and_by_the_measures_direction() -> None:
    def captions(**measures: float) -> list[str]:
        task = make_task(measures)
        task["policy"] = {name: figure(10 * value, 0.01) for name, value in measures.items()}
        return [plot["caption"] for plot in describe_tasks({"tasks": {"one": task}})[0]["plots"]]

    assert captions(accuracy=0.05) == ["sft and base overlap: no difference is shown. policy is better than sft."]
    assert captions(nats_per_token=3.0)[0].endswith("policy is worse than sft.")
    assert captions(matching=0.05)[0].endswith("policy is higher than sft."), "more of a behaviour is not better"
    alone = {"one": {"sft": {"accuracy": figure(0.5)}, "contaminated": None}}
    assert describe_tasks({"tasks": alone})[0]["plots"][0]["caption"].startswith("One model only")
    assert describe_tasks({"tasks": {"one": {"few_shot": 0, "seed": 1}}}) == []


def test_traces_say_which_arm_ends_over_the_bound(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = caption_traces(tmp_path)
    assert "the multiplier holds the cost down" in found["Cost: justice"]
    assert "Its multiplier lies between 0.0333 and 1 and ends at 1" in found["Cost: justice"]
    assert "under its bound of 8" in found["KL to sft"]
    assert "the bounds cost 0.1" in found["Reward"]

    write_trace(tmp_path, "control", make_trace(held=True))
    calm = caption_traces(tmp_path)
    assert "not tempt this data, so the constraint is not shown to work" in calm["Cost: justice"]
    assert "alike within their noise" in calm["Reward"]

    spent = [{**point, "multiplier.justice": max(0.0, 1 - point["step"] / 30)} for point in make_trace(held=True)]
    write_trace(tmp_path, "policy", spent)
    assert "ends at 0: it no longer has to push" in caption_traces(tmp_path)["Cost: justice"]

    write_trace(tmp_path, "policy", make_trace(held=False))
    write_trace(tmp_path, "control", [{**point, "cost.justice": 0.9} for point in make_trace(held=False)])
    weak = caption_traces(tmp_path)
    assert "over its bound of 0.200" in weak["Cost: justice"]
    assert "too weak or too late" in weak["Cost: justice"]
    assert "Its multiplier stayed at zero" in weak["Cost: justice"]


def test_traces_say_what_was_kept_and_why_they_end(tmp_path: Path) -> None:
    write_run(tmp_path)

    def caption(**rlhf: Any) -> str:
        found = describe_traces(tmp_path, {}, rlhf)
        assert found is not None
        return str(found["caption"])

    assert "the step that was kept, 40 by the policy" in caption(kept_step=40)
    assert "stopped early" not in caption(kept_step=40, stopped=None)
    assert "No step passed the checks" in caption(kept_step=0)
    assert "It was stopped early: step 12: KL ran away." in caption(kept_step=10, stopped="step 12: KL ran away")


def test_both_arms_share_one_scale_that_holds_the_bound(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = describe_traces(tmp_path, make_evaluation(), {"kept_step": 40})
    assert found is not None
    row = next(row for row in found["rows"] if row["title"] == "Cost: justice")
    ours, free, price = row["panels"]
    assert (ours["low"], ours["high"], ours["bound"]) == (free["low"], free["high"], free["bound"])
    assert 0 <= ours["bound"] <= 100
    assert ours["kept"] is not None
    assert free["kept"] is None, "the control's report is not there"
    assert price["bound"] is None


def test_compensation_is_judged_by_its_interval() -> None:
    def claim(saved: float) -> str:
        found = describe_card(make_quantization(saved), {})
        assert found is not None
        return str(found["own"]["claim"])

    assert claim(0.03) == (
        "Error compensation takes away 50 % of what plain rounding to four bits loses "
        "(\N{MINUS SIGN}0.0400 to \N{MINUS SIGN}0.0200 bits per byte, paired over 128 documents)."
    )
    assert "is not shown to improve" in claim(0.005)
    assert "is worse" in claim(-0.02)
    found = describe_card(make_quantization(), {})
    assert found is not None
    assert "(\N{MINUS SIGN}0.00900 to 0.0110) includes zero" in found["own"]["caption"]


def test_sensitivity_names_the_matrix_that_matters_most() -> None:
    found = describe_card(make_quantization(), {"q8_0_scored_tokens_per_s": 900.0})
    assert found is not None
    table = found["sensitivity"]
    assert "Rounding layer 1 down alone to four bits costs most, 4 thousandths" in table["caption"]
    assert "keeps 1 of 5 matrices in eight bits, which hold 32 % of the summed losses" in table["caption"]
    assert [row["sum"] for row in table["rows"]] == pytest.approx([0.003, 0.007])
    assert table["columns"] == ["q", "down"]
    assert [row["speed"] for row in found["rows"]] == [None, 900.0, None, None, None]


def test_an_older_quantization_report_still_has_its_card() -> None:
    old = make_quantization()
    rows = {name: {k: v for k, v in row.items() if k != "intervals"} for name, row in old["card"].items()}
    found = describe_card({"card": rows}, {})
    assert found is not None
    assert (found["own"], found["sensitivity"]) == (None, None)
