"""Learning curves of the report: traces as points of a box, and what their ends say."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from stages.plumbing.report_numbers import Json, is_number, number, section

CURVES = (
    ("base", "loss", "Pretraining loss", "nats per token"),
    ("sft", "loss", "Fine-tuning loss", "nats per answer token"),
    ("reward", "accuracy", "Reward model", "share of pairs ranked rightly"),
)
CURVE_POINTS = 160
MIN_JUDGED = 15
Points = Sequence[tuple[float, float]]


def list_curves(root: Path, sft: Json) -> list[dict[str, Any]]:
    """Every learning curve that there is a trace of, and sft's held-out loss; the policy's are in report_traces."""
    curves = []
    for model, key, title, unit in CURVES:
        points = read_points(read_trace(root, model), key)
        if len(points) > 1:
            curves.append({"title": title, "unit": unit, "note": judge_curve(points), **trace_curve(points)})
    held_out = section(sft, "held_out_loss")
    points = read_points(held_out.get("curve") or [], "loss")
    if len(points) > 1:
        kept = held_out.get("kept_step")
        titles = {"title": "Fine-tuning: held-out loss", "unit": "nats per answer token"}
        curves.append({**titles, "note": judge_held_out(points, kept), **trace_curve(points, kept)})
    return curves


def judge_held_out(points: Points, kept: float | None) -> str:
    """Whether the loss on unseen answers had turned, and which step's weights were kept."""
    step, least = min(points, key=lambda point: point[1])
    words = f"Lowest at step {number(step)}, {number(least)}"
    if step == points[-1][0]:
        return f"{words}, the last one: more steps may still help."
    words += f"; it ends {number(points[-1][1] - least, 2)} higher, by learning the training answers too well."
    return f"{words} The weights of step {number(kept)} (dashed) are kept." if is_number(kept) else words


def read_trace(root: Path, model: str) -> list[dict[str, Any]]:
    """The points of a model's trace; none where there is no trace."""
    path = root / "models" / model / "trace.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()] if path.is_file() else []


def read_points(trace: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of one key, where it is a number."""
    return [(point["step"], point[key]) for point in trace if is_number(point.get(key))]


def judge_curve(points: Points) -> str:
    """Whether the means of the last two fifths differ: by a twentieth of all change, and by more than noise."""
    values = [value for _, value in points]
    if len(values) < MIN_JUDGED:
        return f"{len(values)} points are too few to judge by."
    fifth = len(values) // 5
    start, before, end = (mean(part) for part in (values[:fifth], values[-2 * fifth : -fifth], values[-fifth:]))
    noise = 2 * pstdev(values[-fifth:]) * math.sqrt(2 / fifth)
    drift = end - before
    if abs(drift) <= max(0.05 * abs(end - start), noise):
        return "Level at the end: more steps like these would change little."
    return f"Still {'rising' if drift > 0 else 'falling'} at the end: it was stopped, it did not settle."


def last_fifth(points: Points) -> tuple[float, float]:
    """Mean of the last fifth of the points, and twice its standard error."""
    values = [value for _, value in points[-max(1, len(points) // 5) :]]
    return mean(values), 2 * pstdev(values) / math.sqrt(len(values))


def trace_curve(
    points: Points,
    kept: float | None = None,
    bound: float | None = None,
    limits: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """A curve in a box of 100 x 100: thinned points, and their running mean over a twentieth of the run."""
    width = max(1, len(points) // 20)
    smooth = []
    for i in range(len(points)):
        window = [value for _, value in points[max(0, i - width // 2) : i + width // 2 + 1]]
        smooth.append(sum(window) / len(window))
    low, high = limits or find_span(points)
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
        "bound": None if bound is None else 100 - 100 * (bound - low) / span,
    }


def find_span(points: Points) -> tuple[float, float]:
    """Least value and 98th percentile: the first steps of a loss would flatten all the rest."""
    values = sorted(value for _, value in points)
    return values[0], values[min(len(values) - 1, math.ceil(0.98 * (len(values) - 1)))]
