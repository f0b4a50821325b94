"""Write what a model scored item by item, and compare two models on the items that both answered.

The first line of such a file says how the tasks were put; each other line is one item of one task, with every measure
as [numerator, denominator]. Ids are hashes of content, so that files of different runs can be paired.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.evals.statistics import as_metrics, paired_ratio_difference
from llm.evals.tasks.run import Scored, Setup

Results = dict[str, dict[str, Mapping[str, Sequence[float]]]]  # task -> item -> measure -> numerator, denominator


def write_items(path: Path, model: str, setup: Setup, tasks: Mapping[str, Sequence[Scored]]) -> None:
    """Write the scores of every item as JSON Lines."""
    with path.open("w", encoding="utf8") as file:
        file.write(json.dumps({"model": model, "setup": asdict(setup)}) + "\n")
        for task, scored in tasks.items():
            for one in scored:
                file.write(json.dumps({"task": task, **asdict(one)}, ensure_ascii=False) + "\n")


def read_items_file(path: Path, setup: Setup) -> Results:
    """Return the scores of a file. Raises ConfigError: it is none, or its tasks were put in another way."""
    results: Results = {}
    require(path.is_file(), f"{path}: no such file; write one with --items")
    with path.open(encoding="utf8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if number == 1:
                    theirs = row["setup"]
                else:
                    results.setdefault(row["task"], {})[row["id"]] = row["measures"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}:{number}: not a line that --items writes ({error!r})") from None
    require(bool(results), f"{path}: holds no item; write one with --items")
    ours = asdict(setup)
    differing = [key for key in ("few_shot", "seed", "chat") if ours[key] != theirs.get(key)]
    require(
        not differing,
        f"{path}: its tasks were put with other settings ({', '.join(f'{k}={theirs.get(k)}' for k in differing)}): use "
        f"the same, or the difference of the models is not what is measured",
    )
    return results


def compare_tasks(tasks: Mapping[str, Sequence[Scored]], theirs: Results, seed: int) -> dict[str, Any]:
    """Each measure less theirs on the common items, with a paired interval; and how many items only one side has.

    Raises:  ConfigError: no task has an item in common.
    """
    found: dict[str, Any] = {}
    for task, scored in tasks.items():
        others = theirs.get(task, {})
        common = [one for one in scored if one.id in others and one.measures.keys() <= others[one.id].keys()]
        if not common:
            continue
        found[task] = {"unpaired": len(scored) + len(others) - 2 * len(common)}
        for name in common[0].measures:
            sides = [list(zip(*rows, strict=True)) for rows in _pair_up(common, others, name)]
            ours_side, their_side = ((side[0], side[1]) for side in sides)
            found[task][name] = as_metrics(paired_ratio_difference(ours_side, their_side, seed=seed))
    require(bool(found), f"no item in common: the file holds {', '.join(theirs)}; run the same tasks with --items")
    return found


def _pair_up(
    common: Sequence[Scored], others: Mapping[str, Mapping[str, Sequence[float]]], name: str
) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    return [one.measures[name] for one in common], [others[one.id][name] for one in common]
