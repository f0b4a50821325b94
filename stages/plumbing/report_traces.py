"""Alignment traces of the report: the arm with multipliers beside the arm whose multipliers stay at zero.

A row is one quantity; its panels share one scale, and its caption says what their ends and its bound say.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.plumbing.report_curves import (
    MIN_JUDGED,
    Points,
    judge_curve,
    last_fifth,
    read_points,
    read_trace,
    trace_curve,
)
from stages.plumbing.report_numbers import PRINCIPLES, Json, is_number, number, section

WITH, WITHOUT, FREE = "with multipliers", "multipliers at zero", "policy"


def describe_traces(root: Path, evaluate: Json, rlhf: Json) -> dict[str, Any] | None:
    """Rows of panels for reward, KL, costs, length and entropy; None where no policy left a trace."""
    policy, control = read_trace(root, "policy"), read_trace(root, "control")
    costs = [name for name in PRINCIPLES if any(f"cost.{name}" in point for point in policy)]
    named = [
        ("reward", "Reward", "of sampled answers", None, None),
        ("kl", "KL to sft", "nats per answer", "kl_coef", find_kl_bound(evaluate, rlhf)),
        *((f"cost.{p}", f"Cost: {p.replace('_', '-')}", "probability of a bad answer", f"multiplier.{p}",
           find_cost_bound(evaluate, rlhf, p)) for p in costs),
        ("length", "Length", "tokens per answer", "length_price", None),
        ("entropy", "Entropy", "nats per token", None, None),
    ]  # fmt: skip
    kept = (rlhf.get("kept_step"), section(rlhf, "control").get("kept_step"))
    rows = [describe_row(policy, control, kept, *one) for one in named]
    found = [row for row in rows if row is not None]
    words = caption_traces(bool(control), costs) + caption_run(rlhf)
    return {"rows": found, "caption": words} if found else None


def find_cost_bound(evaluate: Json, rlhf: Json, principle: str) -> float | None:
    """The bound that a cost was trained under, or is evaluated against."""
    found = (section(rlhf, "bounds", "cost").get(principle), section(evaluate, "cost", principle).get("bound"))
    return next((bound for bound in found if is_number(bound)), None)


def find_kl_bound(evaluate: Json, rlhf: Json) -> float | None:
    """The bound that KL was trained under, or is evaluated against."""
    found = (section(rlhf, "bounds").get("kl"), section(evaluate, "kl").get("bound"))
    return next((bound for bound in found if is_number(bound)), None)


def caption_traces(control: bool, costs: Sequence[str]) -> str:
    """What the panels are."""
    words = "Every step of preference learning; thin: single steps, bold: running mean."
    if control:
        words += (
            " Left the policy, whose costs are priced by learned multipliers; beside it the control arm, trained alike "
            "but with every multiplier at zero, on the same scale."
        )
    elif costs:
        words += " There is no arm with multipliers at zero to compare with."
    return words


def caption_run(rlhf: Json) -> str:
    """Which step was kept, and why the run ended early if it did."""
    kept, words = rlhf.get("kept_step"), " Dashed red: the bound."
    if kept == 0:
        words += " No step passed the checks, so that the policy is sft."
    elif is_number(kept):
        words += f" Dashed green: the step that was kept, {number(kept)} by the policy."
    return words + (f" It was stopped early: {rlhf['stopped']}." if rlhf.get("stopped") else "")


def describe_row(
    policy: Sequence[dict[str, Any]],
    control: Sequence[dict[str, Any]],
    kept: tuple[float | None, float | None],
    key: str,
    title: str,
    unit: str,
    price: str | None,
    bound: float | None,
) -> dict[str, Any] | None:
    """The panels of one quantity: the policy's, the control's, and the multiplier that prices it."""
    ours, free = read_points(policy, key), read_points(control, key)
    priced = read_points(policy, price) if price else []
    priced_by = "multiplier" if key.startswith("cost.") else "price"
    if len(ours) < 2:
        return None
    values = [value for _, value in (*ours, *free)] + ([] if bound is None else [bound])
    limits = (min(values), max(values))
    panels = [{"label": WITH if len(free) > 1 else FREE, **trace_curve(ours, kept[0], bound, limits)}]
    if len(free) > 1:
        panels.append({"label": WITHOUT, **trace_curve(free, kept[1], bound, limits)})
    if len(priced) > 1:
        prices = [value for _, value in priced] + [0.0]
        reach = (min(prices), max(prices) if any(prices) else 1.0)
        panels.append({"label": f"its {priced_by}", **trace_curve(priced, kept[0], None, reach)})
    if bound is not None:
        words = judge_bound(ours, free, bound, tempting=key.startswith("cost."))
    else:
        words = judge_arms(key, ours, free)
    if len(priced) > 1:
        words += " " + judge_price(priced, priced_by)
    return {"title": title, "unit": unit, "caption": words, "panels": panels}


def judge_bound(ours: Points, free: Points, bound: float, tempting: bool) -> str:
    """Which arm ends over the bound, and what that says about the constraint."""
    end, _ = last_fifth(ours)
    over = sum(value > bound for _, value in ours)
    words = f"Ends at {number(end)}, {compare(end, bound)}; {over} of {len(ours)} steps are over it."
    if len(free) > 1:
        freed, noise = last_fifth(free)
        if not tempting:
            return f"{words} Without multipliers it ends {'over' if freed > bound else 'under'} it, at {number(freed)}."
        words += f" Without multipliers it ends {'over' if freed > bound else 'under'} it, at {number(freed)}"
        if freed <= bound:
            words += ": the reward does not tempt this data, so the constraint is not shown to work."
        elif freed - bound <= noise:
            words += ", but by no more than its noise: weak evidence that the constraint is needed."
        elif end <= bound:
            words += ": the multiplier holds the cost down."
        else:
            words += ": the multiplier was too weak or too late." if end < freed else ": the multiplier did not help."
    return words


def compare(end: float, bound: float) -> str:
    """How an end lies to its bound, and by how much."""
    side = "under" if end <= bound else "over"
    return f"{side} its bound of {number(bound)} by {number(abs(end - bound), 2)}"


def judge_arms(key: str, ours: Points, free: Points) -> str:
    """How far the two arms end apart where there is no bound."""
    end, noise = last_fifth(ours)
    if len(free) < 2:
        return f"From {number(ours[0][1])} to {number(end)}. {judge_curve(ours)}"
    freed, freed_noise = last_fifth(free)
    gap, seen = freed - end, abs(freed - end) > (noise**2 + freed_noise**2) ** 0.5
    words = f"Ends at {number(end)} with multipliers and at {number(freed)} without"
    if key != "reward":
        return words + ("." if seen else ", alike within their noise.")
    if not seen:
        return words + ", alike within their noise: the bounds cost no reward that shows here."
    if gap > 0:
        return words + f": the bounds cost {number(gap, 2)} of reward."
    return words + ": the bounds cost no reward."


def judge_price(priced: Points, name: str) -> str:
    """Whether a multiplier, or another price, ever pushed, and whether it has settled."""
    values = [value for _, value in priced]
    if not any(values):
        return f"Its {name} stayed at zero: it never had to push."
    if max(values) == min(values):
        return f"Its {name} stayed at {number(values[0])}."
    words = f"Its {name} lies between {number(min(values))} and {number(max(values))} and ends at {number(values[-1])}"
    if values[-1] == 0:
        return f"{words}: it no longer has to push."
    if len(values) < MIN_JUDGED:
        return f"{words}."
    if "rising" in judge_curve(priced):
        return f"{words}, still rising: the price is not settled."
    return f"{words}."
