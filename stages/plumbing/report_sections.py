"""The report's verdict, data, cost and lineage, with captions that say what to conclude.

Every claim follows from the figures beside it; a section whose report is missing is None.
"""

import math
from collections.abc import Mapping
from typing import Any

from stages.plumbing.report_numbers import (
    Json,
    duration,
    energy,
    in_order,
    is_number,
    number,
    percent,
    read_figure,
    section,
    signed,
    size,
)

KINDS = ("documents", "conversations", "preferences", "questions")


def describe_verdict(package: Json, evaluate: Json) -> dict[str, Any]:
    """Whether the release passed its gate, and every check, failed ones first."""
    gate = package.get("gate")
    if gate is None:
        return {"state": "pending", "title": "Not packaged yet", "release": "", "checks": [], "stale": False}
    judged = {check["name"]: check["value"] for check in gate["checks"]}.get("bits_per_byte.base")
    measured = section(evaluate, "bits_per_byte").get("base")
    stale = judged is not None and measured is not None and not math.isclose(judged, measured, abs_tol=1e-5)
    return {
        "state": "passed" if gate["passed"] else "failed",
        "title": "Released" if gate["passed"] else "Not released",
        "release": package.get("release", ""),
        "checks": sorted(map(describe_check, gate["checks"]), key=lambda check: check["passed"]),
        "stale": stale,
    }


def describe_check(check: Json) -> dict[str, Any]:
    """A row of the gate: what was measured, its bound, and for a failed one by how much and what to do next."""
    figure, bound = read_figure(check), check["bound"]
    # What a cost without a measurable judge misses is no distance from the cost's bound: `why` has it in words.
    misses = [end - bound for end in figure[:3]] if figure and is_number(bound) else []
    by = next((miss for miss in misses if math.isclose(miss, check.get("by", misses[0]), abs_tol=1e-5)), None)
    return {
        "name": check["name"],
        "passed": check["passed"],
        "value": number(check["value"], 4),
        "reach": f"{number(figure.low)} to {number(figure.high)}" if figure and figure.low < figure.high else "",
        "bound": number(bound, 4) if bound is not None else "",
        "why": check["why"],
        "by": number(abs(by), 2) if by is not None and not check["passed"] else "",
        "remedy": "" if check["passed"] else check.get("remedy") or "",
    }


def list_figures(metrics: Mapping[str, Json]) -> list[dict[str, str]]:
    """The few figures that sum the page up."""
    evaluate, figures = metrics.get("evaluate", {}), []
    if section(evaluate, "bits_per_byte") and section(evaluate, "baselines"):
        note = f"best baseline {number(min(evaluate['baselines'].values()))}"
        figures.append({"value": number(evaluate["bits_per_byte"]["base"]), "name": "bits per byte", "note": note})
    if (sft := read_figure(section(evaluate, "multiple_choice").get("sft"), "accuracy")) is not None:
        note = f"{percent(sft.low, 0)} to {percent(sft.high, 0)}; chance is 25 %"
        figures.append({"value": percent(sft.value, 0), "name": "four-way choice, sft", "note": note})
    if (gain := read_figure(evaluate.get("reward"), "delta", "delta_")) is not None:
        note = f"{signed(gain.low)} to {signed(gain.high)}"
        figures.append({"value": signed(gain.value), "name": "reward, policy against sft", "note": note})
    if "q8_0" in section(metrics, "quantize", "card"):
        card = metrics["quantize"]["card"]
        loss = card["q8_0"]["bits_per_byte"] / card["original"]["bits_per_byte"] - 1
        note = f"q8_0, {signed(100 * loss, 2)} % bits per byte"
        figures.append({"value": size(card["q8_0"]["size_bytes"]), "name": "served file", "note": note})
    return figures


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
    worst = min((kind for kind in kinds if kind["input"]), key=lambda kind: kind["share"], default=None)
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


def describe_energy(found: Json) -> dict[str, Any] | None:
    """What the evaluation models of energy, and under which assumptions; nothing of it is measured."""
    joules = {
        "One answer": found.get("modelled_joules_per_answer"),
        "all training": found.get("modelled_joules_training"),
    }
    rows = [{"name": name, "value": energy(value)} for name, value in joules.items() if is_number(value)]
    if not rows:
        return None
    assumptions = [
        (name.replace("_", " "), number(one) if is_number(one) else one)
        for name, one in section(found, "assumptions").items()
    ]
    return {"rows": rows, "assumptions": assumptions}


def list_samples(evaluate: Json) -> list[dict[str, Any]]:
    """Prompts with what every model answers, unselected; an answer that is not in the report says so."""
    return [
        {
            "kind": sample.get("kind", ""),
            "prompt": sample["messages"][-1]["content"],
            "answers": [(name, sample.get(name, "(not sampled)") or "(empty)") for name in ("base", "sft", "policy")],
            "reference": sample.get("reference") or "",
        }
        for sample in evaluate.get("samples", [])
    ]


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
