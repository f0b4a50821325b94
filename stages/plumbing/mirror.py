"""Mirror the reports to MLflow: a run per stage under one parent, and the release as a model version.

    python -m stages.plumbing.mirror          mirrors whatever is not there yet

The files stay the truth: MLflow is a view of them, can be deleted, and never fails a stage. A run is known by
the content that it mirrors, so mirroring twice changes nothing. The parent stands for one state of commit,
params and raw data. What is new is found without MLflow, whose import and connection take some four seconds.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

log = logging.getLogger("gristmill")
LAST_STAGE = "package"  # the stages before it wait for it: connecting after each would cost a minute per run
CURVES = {"pretrain": "base", "sft": "sft", "reward": "reward", "rlhf": "policy"}
ENVIRONMENT = {  # defaults: what the caller has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True)
class StageRun:
    """One execution of a stage, as its two reports describe it."""

    name: str
    metrics: dict[str, Any]
    cost: dict[str, Any]
    params: dict[str, Any]
    content: str

    @property
    def stage(self) -> str:
        """Return the dvc stage without a source's name."""
        return self.name.partition("/")[0]

    @property
    def end_ms(self) -> int:
        """Return when the stage finished, in milliseconds."""
        return int(datetime.strptime(self.cost["finished"], "%Y-%m-%dT%H:%M:%S%z").timestamp() * 1000)

    @property
    def start_ms(self) -> int:
        """Return when the stage began, in milliseconds."""
        return self.end_ms - int(self.cost["seconds"] * 1000)


def mirror(stage: str, root: Path) -> None:
    """Mirror all that is new after the last stage; a failure is a warning and a field in the runs report."""
    if stage != LAST_STAGE:
        return
    try:
        mirror_all(root)
    except Exception as error:  # noqa: BLE001 - MLflow, its database or its server may fail in any way
        log.warning("%s: not mirrored to MLflow: %s: %s", stage, type(error).__name__, error)
        note_failure(root / "reports/runs" / f"{stage}.json", f"{type(error).__name__}: {error}")


def note_failure(path: Path, reason: str) -> None:
    """Add the field `mlflow` to a runs report."""
    if path.exists():
        cost = json.loads(path.read_text(encoding="utf8"))
        cost["mlflow"] = f"not mirrored: {reason}"
        path.write_text(json.dumps(cost, indent=1, sort_keys=True) + "\n", encoding="utf8")


def mirror_all(root: Path) -> list[str]:
    """Mirror every execution that MLflow does not hold yet; return the names of the runs that were added."""
    root = root.resolve()
    uri = find_database(root)
    runs = read_runs(root)
    state = _digest(uri, _text(root / "dvc.lock"), *(run.content for run in runs))
    marker = root / "mlruns/mirrored"
    lost = uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()
    if not runs or (_text(marker) == state and not lost):
        return []
    from stages.plumbing.tracking import write_runs  # imports MLflow: only when there is something to write

    added = write_runs(root, uri, runs)
    marker.parent.mkdir(exist_ok=True)
    marker.write_text(state, encoding="utf8")
    return added


def find_database(root: Path) -> str:
    """Return MLflow's tracking URI, by default a file of the project, and quieten MLflow before it is imported."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def read_runs(root: Path) -> list[StageRun]:
    """Return the executions whose reports are there, oldest first.

    A report that dvc restored from its cache was made by an earlier execution than the one that the runs file
    describes; the two do not belong together, and the pair was mirrored when it was made.
    """
    tree = yaml.safe_load(_text(root / "params.yaml") or "{}") or {}
    runs = []
    for path in sorted((root / "reports/runs").rglob("*.json")):
        name = path.relative_to(root / "reports/runs").with_suffix("").as_posix()
        report = _text(root / "reports" / f"{name}.json")
        cost = json.loads(_text(path))
        cost.pop("mlflow", None)
        if not report or cost.get("report_digest", _digest(report)) != _digest(report):
            continue
        stage = name.partition("/")[0]
        params = {"base": tree.get("base") or {}, stage: tree.get(stage) or {}}
        content = _digest(name, report, json.dumps(cost, sort_keys=True))
        runs.append(StageRun(name, json.loads(report)["metrics"], cost, params, content))
    return sorted(runs, key=lambda run: (run.cost["finished"], run.name))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, leaf) of nested mappings, in keys that MLflow accepts."""
    for key, value in tree.items():
        name = prefix + re.sub(r"[^\w\-. /]", "_", str(key))
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the leaves that are numbers; true is 1."""
    for key, value in flatten(tree, prefix):
        if isinstance(value, bool | int | float):
            yield key, float(value)


def read_curves(root: Path, stage: str) -> Iterator[tuple[str, float, int]]:
    """Yield (key, value, step) of the learning curves that a stage wrote."""
    folder = root / "models" / CURVES.get(stage, "none")
    for path in sorted(folder.rglob("trace.jsonl")):
        prefix = ".".join(["curve", *path.parent.relative_to(folder).parts])
        for line in _text(path).splitlines():
            point = json.loads(line)
            step = int(point.pop("step"))
            yield from ((key, value, step) for key, value in numbers(point, f"{prefix}."))


def parent_key(root: Path, run: StageRun) -> str:
    """Return what the stages of one `dvc repro` have in common: commit, params and the raw data."""
    lock = yaml.safe_load(_text(root / "dvc.lock") or "{}") or {}
    raw = {name: entry for name, entry in lock.get("stages", {}).items() if name.startswith("ingest")}
    return _digest(run.cost["commit"], _text(root / "params.yaml"), json.dumps(raw, sort_keys=True))


def lock_digest(root: Path) -> str:
    """Return the hash of dvc.lock, the fingerprint of all data, code and params."""
    return _digest(_text(root / "dvc.lock"))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf8") if path.exists() else ""


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def main() -> int:
    """Mirror what is new and say so; return 1 when MLflow failed."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        added = mirror_all(Path("."))
    except Exception as error:  # noqa: BLE001 - MLflow, its database or its server may fail in any way
        log.warning("not mirrored to MLflow: %s: %s", type(error).__name__, error)
        return 1
    log.info("mirrored to MLflow: %s", ", ".join(added) if added else "nothing new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
