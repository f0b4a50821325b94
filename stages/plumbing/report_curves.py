"""Learning curves of the report: traces as points of a box, and what their ends say."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

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
MIN_JUDGED = 15


def list_curves(root: Path, rlhf: Mapping[str, Any]) -> list[dict[str, Any]]:
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
    if len(values) < MIN_JUDGED:
        return f"{len(values)} points are too few to judge by."
    fifth = len(values) // 5
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
