"""Sections of the report: figures from the stages' metrics, and captions that say what to conclude from them.

Every claim follows from the figures beside it; a section whose report is missing is None.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.plumbing.report_numbers import duration, in_order, number, percent, signed, size

MODELS = {"base": "base", "sft": "sft", "policy": "policy"}
BASELINES = {
    "xz": "xz -9e, training text as prefix",
    "zstd": "zstd -19, training text as prefix",
    "ngram": "Kneser-Ney bytes",
}
CHOICES = {**MODELS, "word_overlap": "words shared with the name", "blanked": "sft, name blanked"}
PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")
FORMATS = ("original", "q8_0", "q4_0", "q4_0_rtn")
KINDS = ("documents", "conversations", "preferences", "questions")
Json = Mapping[str, Any]


def describe_verdict(package: Json, evaluate: Json) -> dict[str, Any]:
    """Whether the release passed its gate, and every check."""
    gate = package.get("gate")
    if gate is None:
        return {"state": "pending", "title": "Not packaged yet", "release": "", "checks": [], "stale": False}
    title = "Released" if gate["passed"] else "Not released"
    judged = {check["name"]: check["value"] for check in gate["checks"]}.get("bits_per_byte.base")
    measured = evaluate.get("bits_per_byte", {}).get("base")
    stale = judged is not None and measured is not None and not math.isclose(judged, measured, abs_tol=1e-5)
    return {
        "state": "passed" if gate["passed"] else "failed",
        "title": title,
        "release": package.get("release", ""),
        "checks": gate["checks"],
        "stale": stale,
    }


def list_figures(metrics: Mapping[str, Json]) -> list[dict[str, str]]:
    """The few figures that sum the page up."""
    evaluate, figures = metrics.get("evaluate", {}), []
    if "bits_per_byte" in evaluate:
        best = min(evaluate["baselines"].values())
        note = f"best baseline {number(best)}"
        figures.append({"value": number(evaluate["bits_per_byte"]["base"]), "name": "bits per byte", "note": note})
    if "sft" in evaluate.get("multiple_choice", {}):
        sft = evaluate["multiple_choice"]["sft"]
        note = f"{percent(sft['low'], 0)} to {percent(sft['high'], 0)}; chance is 25 %"
        figures.append({"value": percent(sft["accuracy"], 0), "name": "four-way choice, sft", "note": note})
    if "reward" in evaluate:
        found = evaluate["reward"]
        note = f"{signed(found['delta_low'])} to {signed(found['delta_high'])}"
        figures.append({"value": signed(found["delta"]), "name": "reward, policy against sft", "note": note})
    if "q8_0" in metrics.get("quantize", {}).get("card", {}):
        card = metrics["quantize"]["card"]
        loss = card["q8_0"]["bits_per_byte"] / card["original"]["bits_per_byte"] - 1
        note = f"q8_0, {signed(100 * loss, 2)} % bits per byte"
        figures.append({"value": size(card["q8_0"]["size_bytes"]), "name": "served file", "note": note})
    return figures


def describe_language(evaluate: Json) -> dict[str, Any] | None:
    """Bits per byte of the models and of every baseline, as bars."""
    if "bits_per_byte" not in evaluate:
        return None
    baselines, text = evaluate["baselines"], evaluate.get("text", {})
    names = {**BASELINES, "ngram": f"{BASELINES['ngram']}, order {text.get('ngram_order', '?')}"}
    rows = [(f"{name} model", value, True) for name, value in evaluate["bits_per_byte"].items()]
    # Uniform's 8 bits would squeeze the bars of all the others; the page names them in words.
    rows += [(names.get(name, name), value, False) for name, value in baselines.items() if name != "uniform"]
    best = min(baselines, key=lambda name: baselines[name])
    base = evaluate["bits_per_byte"]["base"]
    gap = abs(1 - base / baselines[best])
    if base < baselines[best]:
        claim = f"It codes unseen text {percent(gap, 0)} shorter than the best baseline"
        caption = (
            f"A byte of held-out text costs the base model {number(base)} bits, and {number(baselines[best])} the best "
            f"baseline ({best}), which read the same training text. So the model has learnt more of the language than "
            "can be copied (xz, zstd) or counted in runs of a few bytes (Kneser-Ney)."
        )
    else:
        claim = f"It does not yet beat {best} on unseen text"
        caption = (
            f"A byte of held-out text costs the base model {number(base)} bits, but only {number(baselines[best])} "
            f"with {best} and the same training text. Train longer, or a larger model, before reading on."
        )
    if text.get("baseline_bytes_left_out"):
        left_out = size(text["baseline_bytes_left_out"])
        caption += f" The baselines did not read the last {left_out} of the training text: their figures are too high."
    return {"claim": claim, "caption": caption, "text": text, "rows": bars(rows)}


def bars(rows: Sequence[tuple[str, float, bool]]) -> list[dict[str, Any]]:
    """Rows with their share of the largest value in percent, smallest first."""
    top = max((value for _, value, _ in rows), default=1) or 1
    ordered = sorted(rows, key=lambda row: row[1])
    return [{"name": n, "value": value, "share": 100 * value / top, "ours": ours} for n, value, ours in ordered]


def describe_choices(evaluate: Json) -> dict[str, Any] | None:
    """Accuracy with interval of every model and both guards."""
    found = evaluate.get("multiple_choice")
    if not found:
        return None
    rows = [{"name": CHOICES[name], "ours": name in MODELS, **found[name]} for name in CHOICES if name in found]
    sft, blanked, overlap = (found.get(name) for name in ("sft", "blanked", "word_overlap"))
    if sft and sft["low"] > 0.25:
        knows = overlap and sft["low"] > overlap["accuracy"]
        claim = "It knows what functions are for" if knows else "It chooses better than by chance"
        caption = (
            f"Right answers of four: sft's whole interval ({percent(sft['low'], 0)} to {percent(sft['high'], 0)}) lies "
            "above the 25 % of guessing."
        )
    else:
        claim = "It cannot yet tell what functions are for"
        caption = "Right answers of four: sft's interval includes the 25 % of guessing."
    if overlap:
        caption += (
            f" A rule that looks for the name's words in the option is right in {percent(overlap['accuracy'], 0)}: "
            "below that a model does not read names well, above it it must know what they mean."
        )
    if blanked:
        fair = blanked["low"] <= 0.25 <= blanked["high"]
        caption += (
            " With the name blanked it guesses, so nothing else gives the answer away."
            if fair
            else " With the name blanked it is off 25 %: something else gives answers away; trust no figure here."
        )
    return {"claim": claim, "caption": caption, "rows": rows, "n": rows[0]["n"]}


def describe_alignment(evaluate: Json) -> dict[str, Any] | None:
    """Rewards, divergence, length and costs after preference learning."""
    if "reward" not in evaluate:
        return None
    reward, length, kl = evaluate["reward"], evaluate["length"], evaluate["kl"]
    judges = {
        "the reward model it was trained on": reward,
        "a second one, trained on other pairs": reward.get("second"),
    }
    rows = [
        {"name": name, "value": j["delta"], "low": j["delta_low"], "high": j["delta_high"]}
        for name, j in judges.items()
        if j
    ]
    better = [row["low"] > 0 for row in rows]
    if all(better):
        claim = "Preference learning raised the reward, and a second judge agrees"
        caption = (
            "Both intervals lie above zero: answers to prompts that no stage saw became better, and not only in the "
            "eyes of the judge that was optimised."
        )
    elif better[0]:
        claim = "The trained judge is pleased, the second one is not convinced"
        caption = "Only the first interval lies above zero: part of the gain may be the first judge's taste."
    else:
        claim = "Preference learning has not raised the reward for certain"
        caption = "The interval of the judge that was optimised includes zero: treat the policy as no better than sft."
    facts = [
        (
            "KL to sft",
            f"{number(kl['value'])} nats per answer",
            f"bound {number(kl['bound'])}",
            kl["value"] <= kl["bound"],
        ),
        (
            "Length of an answer",
            f"{number(length['policy'])} tokens",
            f"{number(length['sft'])} before",
            abs(length["ratio"] - 1) <= 0.2,
        ),
    ]
    return {
        "claim": claim,
        "caption": caption,
        "rows": rows,
        "axis": axis([v for row in rows for v in (row["low"], row["high"], 0.0)]),
        "facts": [dict(zip(("name", "value", "note", "passed"), fact, strict=True)) for fact in facts],
        **describe_costs(evaluate.get("cost", {})),
        "n": reward["n"],
    }


def describe_costs(cost: Json) -> dict[str, Any]:
    """Costs of the policy's answers, by principle."""
    rows = [{"name": name.replace("_", "-"), **one} for name, one in in_order(cost, PRINCIPLES)]
    over = [row["name"] for row in rows if row["value"] > row["bound"]]
    caption = f"Over its bound: {', '.join(over)}." if over else "Every cost lies within its bound, the dashed mark."
    few = min((row["n"] for row in rows), default=0)
    if few < 30:
        caption += f" As few as {few} prompts stand behind a line, so read the whiskers, not the dots."
    return {"costs": rows, "costs_caption": caption}


def axis(values: Sequence[float]) -> dict[str, float]:
    """Limits that hold all values with some air."""
    low, high = min(values), max(values)
    air = 0.12 * ((high - low) or 1.0)
    return {"low": low - air, "high": high + air, "span": high - low + 2 * air}


def describe_card(quantize: Json) -> dict[str, Any] | None:
    """Formats with what they cost in quality."""
    card = quantize.get("card")
    if not card:
        return None
    original = card["original"]
    rows = [
        {"name": name, **row, "loss": row["bits_per_byte"] / original["bits_per_byte"] - 1}
        for name, row in in_order(card, FORMATS)
    ]
    losses = {row["name"]: row["loss"] for row in rows}
    caption = (
        "Loss is the rise of bits per byte against the fp32 original; agreement, the share of equal greedy tokens."
    )
    if "q8_0" in losses:
        smaller = original["size_bytes"] / card["q8_0"]["size_bytes"]
        caption = (
            f"q8_0 is {number(smaller, 2)} times smaller at {signed(100 * losses['q8_0'], 2)} % bits per byte. "
            + caption
        )
    if {"q4_0", "q4_0_rtn"} <= set(losses):
        saved = 1 - losses["q4_0"] / losses["q4_0_rtn"] if losses["q4_0_rtn"] > 0 else 0.0
        caption += (
            f" Error compensation takes away {percent(saved, 0)} of what plain rounding to four bits loses."
            if saved > 0
            else " Error compensation did not improve on plain rounding to four bits here."
        )
    return {"rows": rows, "caption": caption}


def describe_funnel(clean: Json) -> dict[str, Any] | None:
    """What came in, why records were dropped, and what was kept, per kind."""
    if "input" not in clean:
        return None
    kinds = []
    for kind, count in in_order(clean["input"], KINDS):
        reasons = sorted(clean["rejected"].get(kind, {}).items(), key=lambda item: -item[1])
        top = max(count, 1)
        kept, left = clean["kept"].get(kind, 0), []
        for reason, dropped in reasons:
            left.append({"name": reason.replace("_", " "), "count": dropped, "share": 100 * dropped / top})
        splits = clean["splits"].get(kind, {})
        kinds.append(
            {"name": kind, "input": count, "kept": kept, "share": 100 * kept / top, "reasons": left, "splits": splits}
        )
    worst = max(kinds, key=lambda kind: 100 - kind["share"], default=None)
    caption = "Every dropped record has a named reason (data/rejects). Held-out records come from whole groups."
    if worst and worst["reasons"]:
        caption = (
            f"Of the {worst['name']}, {percent(1 - worst['share'] / 100, 0)} were dropped, most of them as "
            f"\u201c{worst['reasons'][0]['name']}\u201d. " + caption
        )
    return {
        "kinds": kinds,
        "caption": caption,
        "bytes": clean.get("bytes", {}),
        "hidden": clean.get("placeholders", {}),
    }


def describe_runs(runs: Mapping[str, Json]) -> dict[str, Any] | None:
    """Time and memory of each stage."""
    if not runs:
        return None
    seconds = {name: float(run.get("seconds", 0)) for name, run in runs.items()}
    memory = {name: float(run.get("peak_memory_bytes", 0)) for name, run in runs.items()}
    total, longest = sum(seconds.values()), max(seconds, key=lambda name: seconds[name])
    top, most = max(seconds.values()) or 1, max(memory.values()) or 1
    rows = [
        {
            "name": name,
            "seconds": seconds[name],
            "share": 100 * seconds[name] / top,
            "memory": memory[name],
            "memory_share": 100 * memory[name] / most,
        }
        for name in runs
    ]
    caption = (
        f"{duration(total)} in all, {percent(seconds[longest] / (total or 1), 0)} of it in {longest}; never more than "
        f"{size(most)} at once. Each stage's last run, on {next(iter(runs.values())).get('device', 'this machine')}."
    )
    return {"rows": rows, "caption": caption}


def describe_lineage(lineage: Json, package: Json, runs: Mapping[str, Json]) -> dict[str, Any]:
    """What the release was made from."""
    sources = []
    for name, entry in lineage.get("corpus", {}).get("sources", {}).items():
        licences = sorted(entry.get("licences", {}).items(), key=lambda item: (-item[1], item[0]))
        sources.append({"name": name, "documents": sum(entry.get("documents", {}).values()), "licences": licences})
    last = list(runs.values())[-1] if runs else {}
    return {
        "release": package.get("release", ""),
        "commit": last.get("commit", ""),
        "dirty": bool(last.get("dirty", False)),
        "stages": lineage.get("stages", {}),
        "sources": sources,
    }
