"""Measure any causal model in a Hugging Face folder on tasks: files of published sets, any JSON Lines, or our own."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.evals.tasks.compare import compare_tasks, read_items_file, write_items
from llm.evals.tasks.contamination import find_contaminated
from llm.evals.tasks.items import Task
from llm.evals.tasks.pydocs import list_default_tasks, split_contaminated
from llm.evals.tasks.read import read_tasks
from llm.evals.tasks.run import Scored, Setup, run_task, summarise, summarise_groups

DEFAULT = "pydocs"
MAX_SHOWN = 5
EXAMPLES = """\
tasks:
  a file, or a folder of files: BLiMP, BBQ, CrowS-Pairs, BBH, GSM8K, CLadder, TruthfulQA, HumanEval (perplexity
  only: no code is run), model-written evaluations, as JSON, JSON Lines or CSV, compressed or not. Any other file needs
  rows with
    {"question": ..., "options": [...], "answer": place, letter or words}   choice by likelihood
    {"question" or "prompt": ..., "answer": ..., "regex": optional}         greedy answer, exact match
    {"good": ..., "bad": ...}                                               minimal pair
    {"text": ...}                                                           perplexity
  What a row is, its columns say; a row that is none of these is counted with its line and reason.
  The name `pydocs` stands for the tasks that the pipeline makes from held-out data (--clean).

measures, each with n and a 95 % bootstrap interval over items:
  accuracy (likelihood of the whole option), accuracy_per_token, accuracy_per_char; exact_match; nats_per_token,
  bits_per_byte. Texts are tokenised as lm-evaluation-harness does, so that accuracy is its acc and
  accuracy_per_char its acc_norm.

examples:
  python -m llm.evals --model models/release/hf --tasks blimp/ gsm8k/test.jsonl --limit 200 --few-shot 3
  python -m llm.evals --model old --tasks bbq/Age.jsonl --items old.jsonl
  python -m llm.evals --model new --tasks bbq/Age.jsonl --against old.jsonl
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, or exit with one line that says what is wrong."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report = measure(options)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(report) if options.json else "\n".join(write_table(report)))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llm.evals",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a Hugging Face causal model")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="PATH", help="files, folders, or `pydocs`")
    parser.add_argument("--limit", type=_positive, metavar="N", help="most items of a task, drawn by the seed")
    parser.add_argument("--few-shot", type=_count, default=0, metavar="K", help="examples before each question")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws items, examples and resamples")
    parser.add_argument(
        "--chat-template",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="put questions as a user's turns, by the folder's template (default: plain text)",
    )
    parser.add_argument(
        "--clean",
        type=Path,
        metavar="FOLDER",
        help="what the stage clean wrote: items whose long n-grams stand in its training split are reported apart",
    )
    parser.add_argument("--items", type=Path, metavar="FILE", help="write the score of every item as JSON Lines")
    parser.add_argument("--against", type=Path, metavar="FILE", help="print the paired difference to such a file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number}: at least 0")
    return number


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all that was asked for; files are read before the model is loaded, so that their faults show at once."""
    setup = Setup(options.few_shot, options.seed, options.chat_template, options.limit)
    tasks = collect_tasks(options.tasks, options.clean)
    theirs = read_items_file(options.against, setup) if options.against else None
    found: set[str] | None = None
    if options.clean:
        found = find_contaminated([item for task in tasks for item in task.items], options.clean)
    from llm.evals.tasks.hugging_face import HuggingFaceModel

    model = HuggingFaceModel(options.model)
    scored: dict[str, list[Scored]] = {}
    report: dict[str, Any] = {"model": str(options.model), "chat_template": setup.chat, "tasks": {}}
    for task in tasks:
        print(f"{task.name}: {len(task.items)} items", file=sys.stderr)
        scored[task.name] = run_task(model, task, setup)
        report["tasks"][task.name] = describe(task, scored[task.name], setup, found)
    if options.items:
        write_items(options.items, str(options.model), setup, scored)
    if theirs is not None:
        report["against"] = compare_tasks(scored, theirs, setup.seed)
    return report


def collect_tasks(names: Sequence[str], clean: Path | None) -> list[Task]:
    """Return the tasks of paths and names, and print which rows were no items."""
    tasks: list[Task] = []
    for name in names:
        if name == DEFAULT and not Path(name).exists():
            require(clean is not None, "the tasks `pydocs` are made from held-out data: name its folder with --clean")
            assert clean is not None
            tasks += list_default_tasks(clean)
        else:
            tasks += read_tasks(Path(name))
    for faults in {id(task.faults): task.faults for task in tasks}.values():
        for fault in faults[:MAX_SHOWN]:
            print(fault, file=sys.stderr)
        if len(faults) > MAX_SHOWN:
            print(f"and {len(faults) - MAX_SHOWN} more rows that are no items", file=sys.stderr)
    repeated = sorted({task.name for task in tasks if [one.name for one in tasks].count(task.name) > 1})
    require(not repeated, f"two tasks of the name {', '.join(repeated)}: name the folder that holds both")
    return tasks


def describe(task: Task, scored: Sequence[Scored], setup: Setup, found: set[str] | None) -> dict[str, Any]:
    """The measures of one task, and how it was put."""
    shots = setup.few_shot if any(one.examples for one in scored) else 0
    return {
        "kind": task.kind,
        **summarise(scored, setup.seed),
        "groups": summarise_groups(scored, setup.seed),
        "few_shot": shots,
        "seed": setup.seed,
        "num_items": len(task.items),
        "num_truncated": sum(one.truncated for one in scored),
        "rejected": dict(task.rejected),
        **({} if found is None else split_contaminated(scored, found, setup.seed)),
    }


def write_table(report: dict[str, Any]) -> list[str]:
    """One line per measure: value, interval, n; then those of clean and contaminated items, and the differences."""
    rows = [("task", "measure", "value", "95 % interval", "n")]
    for name, task in report["tasks"].items():
        for key, figures in task.items():
            if isinstance(figures, dict) and "low" in figures:
                rows.append(_row(name, key, figures))
        rows += [_row(name, f"  {group}", figures) for group, figures in task["groups"].items()]
        if task["rejected"]:
            rows.append((name, "rejected rows", str(sum(task["rejected"].values())), "", ""))
    for name, task in report.get("against", {}).items():
        rows += [_row(name, f"{key}, difference", figures) for key, figures in task.items() if key != "unpaired"]
        if task["unpaired"]:
            rows.append((name, "items that only one side has", str(task["unpaired"]), "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    sides = "<<><>"
    padded = [[f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in padded]


def _row(task: str, measure: str, figures: dict[str, Any]) -> tuple[str, str, str, str, str]:
    interval = f"{figures['low']:.4f} to {figures['high']:.4f}"
    return task, measure, f"{figures['value']:.4f}", interval, str(figures["n"])


if __name__ == "__main__":
    main()
