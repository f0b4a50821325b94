"""What preference learning gained by the judges' reading, and how far these judges can be trusted."""

from collections.abc import Sequence
from typing import Any

from stages.plumbing.report_dots import Mark, Row, plot_dots, show_share
from stages.plumbing.report_numbers import (
    Figure,
    Json,
    is_number,
    listed,
    number,
    percent,
    read_figure,
    section,
    signed,
)

SECOND, RULE = "the second reward model", "the rule"
EVEN_LENGTH = 0.2  # share by which the mean length may differ
NO_CHANGE = Mark(0.0, "0: no change")
WEAK = 0.1  # a correlation nearer to zero is none worth naming
TRUE_TO = 0.05  # error of calibration up to which a stated confidence may be read as a probability


def describe_alignment(evaluate: Json) -> dict[str, Any] | None:
    """Gain of reward under every judge, and what it was bought with; None where it was not measured."""
    reward = section(evaluate, "reward")
    gain = read_gain(reward)
    if gain is None:
        return None
    others = {SECOND: read_gain(section(reward, "second")), RULE: read_gain(section(reward, "rule"))}
    control = read_gain(section(reward, "control"))
    learned = [Row("its own reward model", gain, True)]
    if (second := others[SECOND]) is not None:
        learned.append(Row("a second, of other pairs", second, True))
    if control is not None:
        learned.append(Row("multipliers at zero, by the first", control))
    plots = [plot_dots(learned, NO_CHANGE, show=show_change)]
    if (rule := others[RULE]) is not None:
        plots.append(plot_dots([Row("a rule, from 0 to 1", rule, True)], NO_CHANGE, show=show_change))
    claim, caption = judge_gain(gain, others)
    return {
        "claim": claim,
        "caption": caption + judge_price_of_bounds(gain, control),
        "plots": plots,
        "facts": list_facts(evaluate),
        "n": gain.n,
    }


def show_change(value: float) -> str:
    """A difference with its sign, in few digits."""
    return signed(value, 2)


def read_gain(found: Json) -> Figure | None:
    """The difference of the policy's reward and sft's."""
    return read_figure({**found, "n": found.get("n")}, "delta", "delta_")


def judge_gain(gain: Figure, others: dict[str, Figure | None]) -> tuple[str, str]:
    """Claim and caption: which judges' intervals lie above zero."""
    asked = [name for name, one in others.items() if one is not None]
    unmoved = [name for name, one in others.items() if one is not None and one.low <= 0]
    absent = [name for name, one in others.items() if one is None]
    if gain.low <= 0:
        claim = "Preference learning has not raised the reward for certain"
        words = "The interval of the judge that was optimised does not lie above zero: treat the policy as no better."
    elif unmoved:
        claim = f"The trained judge is pleased, {listed(unmoved)} not"
        words = f"The interval by {listed(unmoved)} does not lie above zero: part of the gain may be one judge's taste."
    elif asked:
        claim = f"Preference learning raised the reward, and {listed(asked)} agree{'s' if len(asked) == 1 else ''}"
        words = (
            "Every interval lies above zero: answers to prompts that no stage saw became better, and not only in the "
            "eyes of the judge that was optimised."
        )
    else:
        claim = "Preference learning raised the reward in the eyes of its own judge"
        words = "The interval lies above zero, but no other judge was asked: this may be reward hacking."
    return claim, words + (f" Not asked: {listed(absent)}." if absent else "")


def judge_price_of_bounds(gain: Figure, control: Figure | None) -> str:
    """What the arm without multipliers gained more."""
    if control is None:
        return ""
    more = f" The arm without multipliers gained {number(control.value)} against {number(gain.value)}"
    if control.low > gain.high:
        return f"{more}: the bounds cost {number(control.value - gain.value, 2)} of reward."
    if control.high < gain.low:
        return f"{more}: the bounds cost no reward."
    return f"{more}; the intervals overlap, so the bounds cost no reward that shows here."


def list_facts(evaluate: Json) -> list[dict[str, Any]]:
    """What a reward can be bought with: distance and length, each with its limit."""
    facts = []
    kl, length = section(evaluate, "kl"), section(evaluate, "length")
    if (found := read_figure(kl)) is not None and is_number(kl.get("bound")):
        reach = f", {number(found.low)} to {number(found.high)}" if found.low < found.high else ""
        note = f"bound {number(kl['bound'])}{reach}"
        facts.append(("KL to sft", f"{number(found.value)} nats per answer", note, found.value <= kl["bound"]))
    if all(is_number(length.get(key)) for key in ("policy", "sft", "ratio")):
        note, even = f"{number(length['sft'])} before", abs(length["ratio"] - 1) <= EVEN_LENGTH
        facts.append(("Length of an answer", f"{number(length['policy'])} tokens", note, even))
    return [dict(zip(("name", "value", "note", "passed"), fact, strict=True)) for fact in facts]


def describe_judge(reward: Json) -> dict[str, Any] | None:
    """Accuracy of the reward model by kind of pair, its calibration and its liking for length."""
    accuracy = section(reward, "first", "accuracy")
    rows = [(name, read_figure(one)) for name, one in accuracy.items()]
    known = [Row(name.replace("_", " "), one, name == "all") for name, one in rows if one is not None]
    if not known:
        return None
    known.sort(key=lambda row: (not row.ours, -row.figure.value))
    return {
        "plot": plot_dots(known, Mark(0.5, "50 %: chance"), (0.0, 1.0), show_share),
        "caption": judge_kinds([row for row in known if not row.ours] or known) + judge_length(reward),
        "n": sum(row.figure.n or 0 for row in known if not row.ours),
        "calibration": describe_calibration(section(reward, "first", "calibration")),
    }


def judge_kinds(rows: Sequence[Row]) -> str:
    """Which kinds of pairs the judge tells apart, which not, and which it turns round."""
    told = [row.name for row in rows if row.figure.low > 0.5]
    turned = [row.name for row in rows if row.figure.high < 0.5]
    even = [row.name for row in rows if row.name not in told and row.name not in turned]
    words = f"It ranks {listed(told)} better than by chance." if told else "It ranks no kind better than by chance."
    if even:
        words += f" On {listed(even)} its interval includes chance: a reward there is noise."
    if turned:
        words += f" It prefers the wrong answer on {listed(turned)}: a reward there misleads."
    return words


def judge_length(reward: Json) -> str:
    """How the reward goes with the length of an answer, and what correcting it by a slope changes."""
    length = section(reward, "first", "length")
    found, before, after = length.get("correlation"), section(length, "as_is"), section(length, "corrected")
    if not is_number(found):
        return ""
    words = f" It prefers {'longer' if found > 0 else 'shorter'} answers (correlation with length {signed(found, 2)})."
    if abs(found) < WEAK:
        words = f" Its reward hardly goes with length (correlation {signed(found, 2)})."
    if before and after:
        words += (
            f" Corrected by a slope, the correlation goes from {signed(before['correlation'], 2)} to "
            f"{signed(after['correlation'], 2)} and the accuracy from {percent(before['accuracy'])} to "
            f"{percent(after['accuracy'])}."
        )
    return words


def describe_calibration(found: Json) -> dict[str, Any] | None:
    """A reliability plot: dots on the diagonal mean that a confidence is a probability."""
    bins = [
        one
        for one in found.get("bins") or []
        if one["n"] and is_number(one["confidence"]) and is_number(one["accuracy"])
    ]
    if not bins or not is_number(found.get("ece")):
        return None
    total = sum(one["n"] for one in bins)
    excess = sum(one["n"] * (one["confidence"] - one["accuracy"]) for one in bins) / total
    low = 0.0 if min(min(one["confidence"], one["accuracy"]) for one in bins) < 0.5 else 0.5
    largest = max(one["n"] for one in bins)
    dots = [
        {
            "x": 100 * (one["confidence"] - low) / (1 - low),
            "y": 100 - 100 * (one["accuracy"] - low) / (1 - low),
            "radius": 1 + 3 * (one["n"] / largest) ** 0.5,
        }
        for one in bins
    ]
    words = f"Expected calibration error {number(found['ece'], 2)} over {number(total)} pairs: "
    if found["ece"] <= TRUE_TO:
        words += "its confidence may be read as a probability."
    elif abs(excess) <= found["ece"] / 2:
        words += "its confidence is off in both directions."
    else:
        words += f"it is {'surer' if excess > 0 else 'less sure'} than it is right."
    if is_number(found.get("temperature")) and is_number(found.get("ece_scaled")):
        scaled = number(found["ece_scaled"], 2)
        words += f" Margins divided by {number(found['temperature'])}, fitted on other pairs, bring it to {scaled}."
    return {"dots": dots, "low": low, "caption": words}
