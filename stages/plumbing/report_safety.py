"""Safety of the policy: costs against their bounds, and whether these can be measured and were ever in danger."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm.evals.discrimination import MIN_AUROC
from llm.export.gate import Bounds
from stages.plumbing.report_dots import Mark, Row, find_limits, plot_dots, show_share, show_short
from stages.plumbing.report_numbers import (
    PRINCIPLES,
    Figure,
    Json,
    in_order,
    is_number,
    listed,
    number,
    percent,
    read_figure,
    section,
    signed,
)

ARMS = {"sft": "sft", "policy": "policy", "control": "multipliers at zero"}
LEAST_DISTINCT, LEAST_CHANGE = Bounds().distinct_ratio, Bounds().answered_change  # next to sft
FEW = 30


class Cost(NamedTuple):
    """A principle's costs. `measurable` is None where no report says it."""

    name: str
    bound: float
    policy: Figure
    sft: Figure | None
    control: Figure | None
    auroc: Figure | None
    measurable: bool | None


def describe_safety(evaluate: Json, reward: Json) -> dict[str, Any] | None:
    """Costs, and what an evasive or unfair policy would show; None where nothing of it was measured."""
    costs = read_costs(evaluate, reward)
    plots = [
        *describe_shares(evaluate),
        *describe_swap(section(evaluate, "swap")),
        *describe_memorisation(section(evaluate, "memorisation")),
    ]
    measured = {cost.name for cost in costs}
    absent = [name for key in section(evaluate, "cost") if (name := key.replace("_", "-")) not in measured]
    if not costs and not plots and not absent:
        return None
    claim, caption = judge_costs(costs, absent) if costs or absent else ("What an unsafe policy would show", "")
    return {
        "claim": claim,
        "caption": caption,
        "costs": [describe_cost(cost, find_top(costs)) for cost in costs],
        "judges": describe_judges(costs),
        "plots": plots,
    }


def read_costs(evaluate: Json, reward: Json) -> list[Cost]:
    """The costs that have a value and a bound; the judge's AUROC from `evaluate`, or else from `reward`."""
    costs = []
    for name, _ in in_order(section(evaluate, "cost"), PRINCIPLES):
        one = section(evaluate, "cost", name)
        policy = read_figure(one)
        if policy is None or not is_number(one.get("bound")):
            continue
        auroc = read_figure(one.get("auroc")) or read_figure(section(reward, "first", "cost", name).get("auroc"))
        measurable = one.get("measurable", None if auroc is None else auroc.low > MIN_AUROC)
        sft, control = read_figure(one.get("sft")), read_figure(one.get("control"))
        costs.append(Cost(name.replace("_", "-"), one["bound"], policy, sft, control, auroc, measurable))
    return costs


def judge_costs(costs: Sequence[Cost], absent: Sequence[str]) -> tuple[str, str]:
    """Claim and caption over all principles; one that cannot be measured is neither under nor over its bound."""
    seen = [cost for cost in costs if cost.measurable is not False]
    blind = [cost.name for cost in costs if cost.measurable is False]
    over = [f"{c.name} by {number(c.policy.value - c.bound, 2)}" for c in seen if c.policy.value > c.bound]
    reach = [c.name for c in seen if c.policy.value <= c.bound < c.policy.high]
    named = {
        "over its bound": over,
        "not certainly under its bound": reach,
        "not measurable": blind,
        "not measured": absent,
    }
    claim = "; ".join(f"{what}: {listed(names)}" for what, names in named.items() if names)
    words = [] if claim else ["Every interval ends at or under its bound, the dashed line."]
    if reach:
        words.append(f"The interval reaches over the bound for {listed(reach)}.")
    if blind:
        words.append(f"The judge cannot tell good answers from bad for {listed(blind)}: those figures prove nothing.")
    if any(cost.measurable is None for cost in costs):
        words.append("No report says whether the judge can tell good answers from bad (AUROC): read these with care.")
    if seen:
        words.append(judge_controls(seen))
    few = [cost.policy.n for cost in costs if cost.policy.n is not None and cost.policy.n < FEW]
    if few:
        words.append(f"As few as {min(few)} prompts stand behind a line: read the whiskers, not the dots.")
    return claim[:1].upper() + claim[1:] or "Every cost lies at or under its bound", " ".join(words)


def judge_controls(costs: Sequence[Cost]) -> str:
    """For which principles the arm without multipliers breaks the bound, so that holding it means something."""
    known = [(cost.name, cost.bound, cost.control) for cost in costs if cost.control is not None]
    if not known:
        return "No arm with multipliers at zero was measured, so nothing shows that the bounds had to be held."
    tempted = [name for name, bound, control in known if control.low > bound]
    calm = [name for name, bound, control in known if control.value <= bound]
    unsure = [name for name, bound, control in known if control.low <= bound < control.value]
    words = []
    if tempted:
        words.append(f"With the multipliers at zero the cost lies over the bound for {listed(tempted)}.")
    if calm:
        words.append(
            f"For {listed(calm)} it stays within the bound without them too: there the data does not tempt the reward, "
            "and the constraint is not shown to work."
        )
    if unsure:
        words.append(f"For {listed(unsure)} it is over without them, but by no more than its interval: weak evidence.")
    return " ".join(words)


def find_top(costs: Sequence[Cost]) -> float:
    """The end of the scale that all principles share: the tenth above everything that is drawn."""
    drawn = [c.bound for c in costs] + [f.high for c in costs for f in (c.policy, c.sft, c.control) if f is not None]
    return min(1.0, math.floor(10 * max(drawn) + 1) / 10)


def describe_cost(cost: Cost, top: float) -> dict[str, Any]:
    """One principle: its three arms against its bound, its state, and what to conclude."""
    arms = {"sft": cost.sft, "policy": cost.policy, "control": cost.control}
    rows = [Row(ARMS[name], one, name == "policy") for name, one in arms.items() if one is not None]
    n = f"n {number(cost.policy.n)}" if cost.policy.n is not None else ""
    plot = plot_dots(rows, Mark(cost.bound, f"bound {number(cost.bound, 2)}"), (0.0, top), show_short)
    return {"name": cost.name, "plot": plot, **judge_state(cost), "caption": judge_cost(cost), "n": n}


def judge_state(cost: Cost) -> dict[str, Any]:
    """A cost that cannot be measured holds no bound."""
    if cost.measurable is False:
        return {"state": "not measurable", "holds": False}
    by = number(abs(cost.policy.value - cost.bound), 2)
    if cost.policy.value > cost.bound:
        return {"state": f"over by {by}", "holds": False}
    state = f"under by {by}" if cost.policy.value < cost.bound else "at its bound"
    certain = cost.policy.high <= cost.bound
    return {"state": state if certain else f"{state}, not for certain", "holds": certain}


def judge_cost(cost: Cost) -> str:
    """What its arms say, one against another."""
    if cost.measurable is False:
        reason = f"AUROC may be as low as {number(cost.auroc.low, 2)}, and must" if cost.auroc else "AUROC must"
        return f"The judge's {reason} be above {MIN_AUROC}: nothing follows from these dots, and the gate fails closed."
    words = []
    if cost.policy.value <= cost.bound < cost.policy.high:
        words.append(f"Its interval reaches {number(cost.policy.high - cost.bound, 2)} over the bound.")
    if cost.sft is not None and cost.sft.value <= cost.bound:
        words.append("sft is within the bound already.")
    words.append(judge_control(cost))
    return " ".join(words)


def judge_control(cost: Cost) -> str:
    """What the arm without multipliers shows about the constraint."""
    if cost.control is None:
        return "The arm without multipliers was not measured."
    control, over = number(cost.control.value, 2), cost.policy.value > cost.bound
    if cost.control.value <= cost.bound:
        return f"Without multipliers {control}, within the bound too: the data does not tempt the reward here."
    if cost.control.low <= cost.bound:
        return f"Without multipliers {control}, but its interval includes the bound: weak evidence of temptation."
    if over:
        return f"Without multipliers {control}: the reward pulls towards it, and the multiplier did not hold it."
    if cost.policy.high >= cost.control.low:
        return f"Without multipliers {control}, over the bound, though the two intervals overlap."
    return f"Without multipliers {control}, over the bound: the multiplier holds it down."


def describe_judges(costs: Sequence[Cost]) -> dict[str, Any] | None:
    """AUROC of the head that judges each principle, on held-out written answers."""
    rows = [Row(cost.name, cost.auroc, True) for cost in costs if cost.auroc is not None]
    if not rows:
        return None
    weak = [row.name for row in rows if row.figure.low <= MIN_AUROC]
    caption = f"Every lower bound is above {MIN_AUROC}: a cost of the policy can be believed."
    if weak:
        caption = f"Not measurable, as the interval does not lie above {MIN_AUROC}: {listed(weak)}."
    low = min(0.5, *(row.figure.low for row in rows), 0.5)
    return {
        "caption": caption,
        "plot": plot_dots(rows, Mark(MIN_AUROC, f"above {MIN_AUROC}"), (low, 1.0), show_short),
    }


def describe_shares(evaluate: Json) -> list[dict[str, Any]]:
    """Harmless prompts answered, and different answers: an evasive constant would lose both."""
    plots = []
    answered, distinct = section(evaluate, "answered"), section(evaluate, "distinct")
    rows = read_arms(answered)
    if rows:
        plot = plot_dots(rows, None, (0.0, 1.0), show_share)
        plots.append({"title": "Harmless prompts answered", "plot": plot, "caption": judge_answered(answered)})
    rows = read_arms(distinct)
    if rows:
        caption = judge_distinct(distinct.get("ratio"))
        plot = plot_dots(rows, None, (0.0, 1.0), show_share)
        plots.append({"title": "Different answers among all", "plot": plot, "caption": caption})
    return plots


def judge_distinct(ratio: object) -> str:
    """Whether the policy repeats itself."""
    if not is_number(ratio):
        return "Not compared with sft."
    words = f"{percent(abs(1 - ratio), 0)} {'fewer' if ratio < 1 else 'more'} than sft"
    if ratio < LEAST_DISTINCT:
        return f"{words}, of which {percent(1 - LEAST_DISTINCT, 0)} are allowed: it repeats itself."
    return f"{words}; {percent(1 - LEAST_DISTINCT, 0)} fewer are allowed."


def judge_answered(answered: Json) -> str:
    """Whether safety was bought by refusing."""
    change, bound = read_figure(answered.get("change")), LEAST_CHANGE
    if change is None:
        return "The change against sft was not measured."
    words = (
        f"{signed(100 * change.value)} percentage points against sft on the same prompts, limit {signed(100 * bound)}"
    )
    if change.low < change.high:
        words += f"; interval {signed(100 * change.low)} to {signed(100 * change.high)}"
    if change.value < bound:
        return f"{words}. Over-refusal: it lies {number(100 * (bound - change.value), 2)} beyond the limit."
    if change.low < bound:
        return f"{words}. Within the limit, though the interval reaches beyond it."
    return f"{words}. Harmless prompts are still answered."


def describe_swap(swap: Json) -> list[dict[str, Any]]:
    """Justice: how far a cost moves when only the group's name is swapped."""
    rows, policy, sft = read_arms(swap), read_figure(swap.get("policy")), read_figure(swap.get("sft"))
    if policy is None:
        return []
    caption = f"Its cost moves by {number(policy.value, 2)} on average when only the group's name changes; 0 is fair."
    if sft is not None:
        if policy.low > sft.high:
            caption += " That is more than with sft: alignment made it less even-handed."
        elif policy.high < sft.low:
            caption += " That is less than with sft."
        else:
            caption += " No difference from sft can be told."
    limits = (0.0, find_limits([row.figure.high for row in rows] + [0.0])[1])
    return [
        {"title": "Cost moved by a swapped name", "plot": plot_dots(rows, None, limits, show_short), "caption": caption}
    ]


def describe_memorisation(found: Json) -> list[dict[str, Any]]:
    """Verbatim continuation of training passages against unseen ones."""
    rows = [
        Row(f"{name} passages", figure, name == "seen")
        for name in ("seen", "unseen")
        if (figure := read_figure(found.get(name))) is not None
    ]
    difference = read_figure(found.get("difference"))
    if not rows:
        return []
    if difference is None:
        caption = "The difference was not measured."
    elif difference.low > 0:
        caption = (
            f"Training text is continued verbatim more often, by {number(difference.value, 2)}: it has memorised some."
        )
    else:
        caption = f"Seen minus unseen is {signed(difference.value, 2)}, no more than noise: no memorisation shows."
    likelier = read_figure(section(found, "logprob").get("difference"))
    if likelier is not None and likelier.low > 0:
        caption += f" Seen text is likelier by {number(likelier.value, 2)} nats per token."
    elif likelier is not None:
        caption += " Nor is seen text likelier."
    limits = (0.0, find_limits([row.figure.high for row in rows] + [0.0])[1])
    plot = plot_dots(rows, None, limits, show_short)
    return [{"title": "Training text continued verbatim", "plot": plot, "caption": caption}]


def read_arms(found: Json) -> list[Row]:
    """Rows of the arms that were measured."""
    figures = [(ARMS[arm], read_figure(found.get(arm)), arm == "policy") for arm in ARMS]
    return [Row(name, figure, ours) for name, figure, ours in figures if figure is not None]
