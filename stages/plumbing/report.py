"""Render reports/report.html: what the last run made, what it is worth and what it cost, on one page.

A view of JSON and JSONL files: nothing is measured here, and whatever is missing is left out or said to be
missing. The page needs no network, no script and no other file. `python -m stages.plumbing.report` names it.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.plumbing import report_numbers as numbers
from stages.plumbing import report_sections as sections
from stages.plumbing import report_tasks as tasks
from stages.plumbing.report_alignment import describe_alignment, describe_judge
from stages.plumbing.report_curves import list_curves
from stages.plumbing.report_numbers import section
from stages.plumbing.report_quantization import describe_card
from stages.plumbing.report_safety import describe_safety
from stages.plumbing.report_traces import describe_traces

STAGES = (
    "ingest", "clean", "validate", "tokenize", "pretrain", "sft", "reward", "rlhf", "evaluate", "quantize", "package",
)  # fmt: skip
MEASURED = {
    "multiple_choice": "four-way choice", "tasks": "tasks", "reward": "reward", "kl": "KL", "cost": "costs",
    "answered": "harmless prompts answered", "distinct": "different answers", "swap": "swapped group names",
    "memorisation": "memorisation", "energy": "energy", "samples": "samples",
}  # fmt: skip


def render(root: Path) -> Path | None:
    """Write reports/report.html from what is there; None when there is no report at all."""
    metrics = {path.stem: read_json(path).get("metrics", {}) for path in sorted((root / "reports").glob("*.json"))}
    runs = read_runs(root / "reports" / "runs")
    if not metrics:
        return None
    evaluate, package = metrics.get("evaluate", {}), metrics.get("package", {})
    lineage = read_json(root / "models" / "release" / "lineage.json")
    page = {
        "verdict": sections.describe_verdict(package, evaluate),
        "figures": sections.list_figures(metrics),
        "curves": list_curves(root, metrics.get("sft", {})),
        "language": tasks.describe_language(evaluate),
        "choices": tasks.describe_choices(evaluate),
        "tasks": tasks.describe_tasks(evaluate),
        "alignment": describe_alignment(evaluate),
        "traces": describe_traces(root, evaluate, metrics.get("rlhf", {})),
        "judge": describe_judge(metrics.get("reward", {})),
        "safety": describe_safety(evaluate, metrics.get("reward", {})),
        "card": describe_card(metrics.get("quantize", {}), runs.get("quantize", {})),
        "funnel": sections.describe_funnel(metrics.get("clean", {})),
        "checks": metrics.get("validate"),
        "lineage": sections.describe_lineage(lineage, package, runs),
        "samples": sections.list_samples(evaluate),
        "runs": sections.describe_runs(runs),
        "energy": sections.describe_energy(section(evaluate, "energy")),
        "missing": [name for name in STAGES[1:] if name not in metrics],
        "absent": [words for name, words in MEASURED.items() if evaluate and not evaluate.get(name)],
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=show_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "num": numbers.number,
        "signed": numbers.signed,
        "size": numbers.size,
        "time": numbers.duration,
        "percent": numbers.percent,
    }
    target = root / "reports" / "report.html"
    target.write_text(environment.get_template("report.html.j2").render(page), encoding="utf8")
    return target


def show_text(value: object) -> object:
    """What the page prints: text of models and data may hold controls; marks of the page itself are Markup."""
    return numbers.show_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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


if __name__ == "__main__":
    made = render(Path())
    print(made.resolve() if made else "reports/ holds no report yet: run `dvc repro` (make run)")
