"""Render reports/report.html: what the last run made, what it is worth and what it cost, on one page.

A view of JSON and JSONL files: nothing is measured here, and whatever is missing is left out or said to be
missing. The page needs no network, no script and no other file. `python -m stages.plumbing.report` names it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

STAGES = (
    "ingest", "clean", "validate", "tokenize", "pretrain", "sft", "reward", "rlhf", "evaluate", "quantize", "package",
)  # fmt: skip
MODELS = {"base": "base", "sft": "sft", "policy": "policy"}
BASELINES = {
    "xz": "xz -9e, training text as prefix",
    "zstd": "zstd -19, training text as prefix",
    "ngram": "Kneser-Ney bytes",
}
CHOICES = {**MODELS, "word_overlap": "words shared with the name", "blanked": "sft, name blanked"}
CURVES = (
    ("base", "loss", "Pretraining loss", "nats per token"),
    ("sft", "loss", "Fine-tuning loss", "nats per answer token"),
    ("reward", "accuracy", "Reward model", "share of pairs ranked rightly"),
    ("policy", "reward", "Policy: reward", "of sampled answers"),
    ("policy", "kl", "Policy: KL to sft", "nats per answer"),
    ("policy", "length", "Policy: length", "tokens per answer"),
    ("policy", "entropy", "Policy: entropy", "nats per token"),
)
CURVE_POINTS = 160
Json = Mapping[str, Any]


def render(root: Path) -> Path | None:
    """Write reports/report.html from what is there; None when there is no report at all."""
    metrics = {path.stem: read_json(path).get("metrics", {}) for path in sorted((root / "reports").glob("*.json"))}
    runs = read_runs(root / "reports" / "runs")
    if not metrics:
        return None
    evaluate, package = metrics.get("evaluate", {}), metrics.get("package", {})
    page = {
        "verdict": describe_verdict(package, evaluate),
        "figures": list_figures(metrics),
        "language": describe_language(evaluate),
        "choices": describe_choices(evaluate),
        "alignment": describe_alignment(evaluate),
        "samples": evaluate.get("samples", []),
        "curves": list_curves(root, metrics.get("rlhf", {})),
        "card": describe_card(metrics.get("quantize", {})),
        "funnel": describe_funnel(metrics.get("clean", {})),
        "checks": metrics.get("validate"),
        "runs": describe_runs(runs),
        "lineage": describe_lineage(root, package, runs),
        "missing": [name for name in STAGES[1:] if name not in metrics],
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": number, "size": size, "time": duration, "percent": percent}
    target = root / "reports" / "report.html"
    target.write_text(environment.get_template("report.html.j2").render(page), encoding="utf8")
    return target


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file."""
    found = json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """What each stage cost, in the order of the DAG; sources of ingest apart."""
    runs = {
        path.relative_to(folder).with_suffix("").as_posix(): read_json(path) for path in sorted(folder.rglob("*.json"))
    }
    known = [name for name in runs if name.partition("/")[0] in STAGES]
    return {name: runs[name] for name in sorted(known, key=lambda name: STAGES.index(name.partition("/")[0]))}


def number(value: float | str, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    if isinstance(value, str) or not math.isfinite(value):
        return str(value)
    if value == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f} %"


def size(count: float) -> str:
    """Bytes in decimal units."""
    unit = min(3, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{number(count / 1000**unit)} {('B', 'kB', 'MB', 'GB')[unit]}"


def duration(seconds: float) -> str:
    """Seconds as m:ss from one minute on."""
    return f"{number(seconds, 2)} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


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


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, minus being U+2212."""
    return ("+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "") + number(abs(value), digits)


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
        claim = "It knows what functions are for"
        caption = (
            f"Right answers of four: sft's whole interval ({percent(sft['low'], 0)} to {percent(sft['high'], 0)}) lies "
            "above the 25 % of guessing."
        )
    else:
        claim = "It cannot yet tell what functions are for"
        caption = "Right answers of four: sft's interval includes the 25 % of guessing."
    if overlap:
        caption += (
            f" Matching the name's words with the option's is right in {percent(overlap['accuracy'], 0)}: above that a "
            "model must know meanings, below it the model does not yet see how words are spelt."
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
    costs = [{"name": name.replace("_", "-"), **cost} for name, cost in evaluate.get("cost", {}).items()]
    over = [cost["name"] for cost in costs if cost["value"] > cost["bound"]]
    costs_caption = (
        f"Over its bound: {', '.join(over)}." if over else "Every cost lies within its bound (the mark on each line)."
    )
    few = min((cost["n"] for cost in costs), default=0)
    if few < 30:
        costs_caption += f" As few as {few} prompts stand behind a line, so read the whiskers, not the dots."
    return {
        "claim": claim,
        "caption": caption,
        "rows": rows,
        "axis": axis([v for row in rows for v in (row["low"], row["high"], 0.0)]),
        "facts": [dict(zip(("name", "value", "note", "passed"), fact, strict=True)) for fact in facts],
        "costs": costs,
        "costs_caption": costs_caption,
        "n": reward["n"],
    }


def axis(values: Sequence[float]) -> dict[str, float]:
    """Limits that hold all values with some air."""
    low, high = min(values), max(values)
    air = 0.12 * ((high - low) or 1.0)
    return {"low": low - air, "high": high + air, "span": high - low + 2 * air}


def list_curves(root: Path, rlhf: Json) -> list[dict[str, Any]]:
    """Every learning curve that there is a trace of."""
    curves = []
    for model, key, title, unit in CURVES:
        path = root / "models" / model / "trace.jsonl"
        lines = path.read_text(encoding="utf8").splitlines() if path.is_file() else []
        points = [(p["step"], p[key]) for p in map(json.loads, lines) if key in p and math.isfinite(p[key])]
        if len(points) > 1:
            kept = rlhf.get("kept_step") if model == "policy" else None
            curves.append({"title": title, "unit": unit, "note": judge_curve(points), **trace_curve(points, kept)})
    return curves


def judge_curve(points: Sequence[tuple[float, float]]) -> str:
    """Whether the means of the last two fifths differ: by a twentieth of all change, and by more than noise."""
    values = [value for _, value in points]
    fifth = max(1, len(values) // 5)
    start, before, end = (mean(part) for part in (values[:fifth], values[-2 * fifth : -fifth], values[-fifth:]))
    noise = 2 * pstdev(values[-fifth:]) * math.sqrt(2 / fifth)
    drift = end - before
    if abs(drift) <= max(0.05 * abs(end - start), noise):
        return "Level at the end: more steps like these would change little."
    return f"Still {'rising' if drift > 0 else 'falling'} at the end: it was stopped, it did not settle."


def trace_curve(points: Sequence[tuple[float, float]], kept: float | None) -> dict[str, Any]:
    """A curve in a box of 100 x 100: thinned points, and their running mean over a twentieth of the run."""
    width = max(1, len(points) // 20)
    smooth = []
    for i in range(len(points)):
        window = [value for _, value in points[max(0, i - width // 2) : i + width // 2 + 1]]
        smooth.append(sum(window) / len(window))
    values = sorted(value for _, value in points)
    # The first steps of a loss would flatten all the rest: the top is the 98th percentile.
    low, high = values[0], values[min(len(values) - 1, math.ceil(0.98 * (len(values) - 1)))]
    span = (high - low) or 1.0
    first, last = points[0][0], points[-1][0]
    steps = (last - first) or 1

    def place(step: float, value: float) -> str:
        return f"{100 * (step - first) / steps:.2f},{min(100.0, max(0.0, 100 - 100 * (value - low) / span)):.2f}"

    every = max(1, len(points) // CURVE_POINTS)
    shown = sorted({*range(0, len(points), every), len(points) - 1})
    return {
        "raw": " ".join(place(*points[i]) for i in shown),
        "smooth": " ".join(place(points[i][0], smooth[i]) for i in shown),
        "low": low,
        "high": high,
        "first": first,
        "last": last,
        "start": smooth[0],
        "end": smooth[-1],
        "kept": None if kept is None or not first <= kept <= last else 100 * (kept - first) / steps,
    }


def describe_card(quantize: Json) -> dict[str, Any] | None:
    """Formats with what they cost in quality."""
    card = quantize.get("card")
    if not card:
        return None
    original = card["original"]
    rows = [
        {"name": name, **row, "loss": row["bits_per_byte"] / original["bits_per_byte"] - 1}
        for name, row in card.items()
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
    for kind, count in clean["input"].items():
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


def describe_lineage(root: Path, package: Json, runs: Mapping[str, Json]) -> dict[str, Any]:
    """What the release was made from."""
    lineage = read_json(root / "models" / "release" / "lineage.json")
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


if __name__ == "__main__":
    made = render(Path())
    print(made.resolve() if made else "reports/ holds no report yet: run `dvc repro` (make run)")
