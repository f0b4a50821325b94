"""Write executions of stages, their parent and the release to MLflow. Nothing else imports MLflow.

Runs are found by tags (`content`, `parent_key`), so writing one again changes nothing, and one that a kill
left half written is completed.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from llm.config import ConfigError, require
from llm.export.verify import digest_file
from stages.plumbing.mirror import StageRun, flatten, lock_digest, numbers, parent_key, read_curves

NAME = "gristmill"
CHALLENGER = "challenger"  # the alias of the newest model version whose gate passed
CHAMPION = "champion"  # the alias of the one that `python -m flows.promote` chose
BEFORE = "champion_before"  # the tag of a champion that names the one before it
ITEMS = "items.json"
SUMMARIES = ("evaluate", "quantize", "package")  # shown on the parent too, to compare whole pipelines
MAX_METRICS, MAX_PARAMS, MAX_VALUE_CHARS = 1000, 100, 6000  # MLflow's limits on one batch and one value


@dataclass(frozen=True)
class Version:
    """A model version, which stands for one packaged release."""

    number: int
    release: str
    commit: str
    passed: bool  # its release gate
    aliases: tuple[str, ...]
    before: int | None  # of a champion, past or present: the champion that it replaced
    items: str  # where its items.json lies and its SHA-256


def write_runs(root: Path, uri: str, runs: list[StageRun]) -> list[str]:
    """Write the runs that are missing, their parents, and the release; return the names of the former."""
    client = MlflowClient(uri)
    experiment = open_experiment(client, root, uri)
    added = []
    for run in runs:
        known = find_run(client, experiment, "content", run.content)
        if known is None or known.info.status == "RUNNING":
            parent = open_parent(client, experiment, root, run)
            known = write_run(client, experiment, root, run, parent, known)
            added.append(run.name)
        if run.name == "package":
            register_release(client, root, run, known)
    parent = find_run(client, experiment, "parent_key", parent_key(root, runs[-1]))
    if parent is not None:
        write_parent(client, parent, root, runs)
    return added


def open_experiment(client: MlflowClient, root: Path, uri: str) -> str:
    """Return the id of the project's experiment, made if need be."""
    experiment = client.get_experiment_by_name(NAME)
    if experiment is not None:
        return str(experiment.experiment_id)
    local = (root / "mlruns").as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(NAME, local))


def find_run(client: MlflowClient, experiment: str, tag: str, value: str) -> Run | None:
    """Return the run that carries a tag, or None."""
    found = client.search_runs([experiment], f"tags.{tag} = '{value}'", max_results=1)
    return found[0] if found else None


def open_parent(client: MlflowClient, experiment: str, root: Path, run: StageRun) -> Run:
    """Return the parent of an execution, made if need be."""
    key = parent_key(root, run)
    known = find_run(client, experiment, "parent_key", key)
    if known is not None:
        return known
    tags = {"parent_key": key, "commit": run.cost["commit"]}
    name = f"pipeline {run.cost['commit'][:8] or 'without git'} {run.cost['finished'][:16]}"
    return client.create_run(experiment, run.start_ms, tags, name)


def write_run(client: MlflowClient, experiment: str, root: Path, run: StageRun, parent: Run, known: Run | None) -> Run:
    """Write one execution of a stage: params, metrics, cost, curves and its report; return its run."""
    tags = {
        "content": run.content,
        "stage": run.stage,
        "commit": run.cost["commit"],
        "dvc_lock": lock_digest(root),
        MLFLOW_PARENT_RUN_ID: parent.info.run_id,
        **{f"run.{key}": str(value) for key, value in flatten(run.cost) if not isinstance(value, int | float)},
    }
    made = known or client.create_run(experiment, run.start_ms, tags, run.name)
    metrics = [Metric(key, value, run.end_ms, 0) for key, value in numbers(run.metrics)]
    metrics += [Metric(f"run.{key}", value, run.end_ms, 0) for key, value in numbers(run.cost)]
    metrics += [Metric(key, value, run.end_ms, step) for key, value, step in read_curves(root, run.stage)]
    params = [Param(key, json.dumps(value)[:MAX_VALUE_CHARS]) for key, value in flatten(run.params)]
    log_all(client, made, metrics, params)
    client.log_artifact(made.info.run_id, str(root / "reports" / f"{run.name}.json"))
    client.set_terminated(made.info.run_id, "FINISHED", run.end_ms)
    return made


def log_all(client: MlflowClient, run: Run, metrics: list[Metric], params: list[Param]) -> None:
    """Log metrics and params in as few batches as MLflow allows."""
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + MAX_METRICS])
    for start in range(0, len(params), MAX_PARAMS):
        client.log_batch(run.info.run_id, params=params[start : start + MAX_PARAMS])


def write_parent(client: MlflowClient, parent: Run, root: Path, runs: list[StageRun]) -> None:
    """Write what the pipeline as a whole has reached to the parent, with its params, lock and report page."""
    for run in runs:
        if run.name in SUMMARIES:
            named = numbers(run.metrics, f"{run.name}.")
            log_all(client, parent, [Metric(key, value, run.end_ms, 0) for key, value in named], [])
    client.log_batch(parent.info.run_id, tags=[RunTag("dvc_lock", lock_digest(root))])
    for name in ("params.yaml", "dvc.lock", "reports/report.html"):
        if (root / name).exists():
            client.log_artifact(parent.info.run_id, str(root / name))
    client.set_terminated(parent.info.run_id, "FINISHED", runs[-1].end_ms)


def register_release(client: MlflowClient, root: Path, run: StageRun, made: Run) -> None:
    """Register models/release as a model version; it becomes the challenger only when its gate passed."""
    release, passed = str(run.metrics["release"]), bool(run.metrics["gate"]["passed"])
    try:
        client.create_registered_model(NAME, description="Releases of this project; fingerprint = release hash")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{NAME}' and tags.fingerprint = '{release}'")
    if known:
        version = str(known[0].version)
    else:
        source = (root / "models/release").as_uri()
        tags = {"fingerprint": release, "commit": run.cost["commit"]}
        version = str(client.create_model_version(NAME, source, made.info.run_id, tags=tags).version)
    client.set_model_version_tag(NAME, version, "gate", "passed" if passed else "failed")
    client.set_model_version_tag(NAME, version, "dvc_lock", lock_digest(root))
    if (items := root / "models/release" / ITEMS).is_file():
        client.log_artifact(made.info.run_id, str(items))
        client.set_model_version_tag(NAME, version, "items", f"{made.info.run_id} {digest_file(items)}")
    aliases = client.get_registered_model(NAME).aliases
    if passed and str(aliases.get(CHAMPION)) != version:
        client.set_registered_model_alias(NAME, CHALLENGER, version)
    elif not passed and str(aliases.get(CHALLENGER)) == version:  # packaged again, under other bounds
        client.delete_registered_model_alias(NAME, CHALLENGER)


class Registry:
    """The model versions of a database, and which of them is the champion."""

    def __init__(self, uri: str):
        self._client = MlflowClient(uri)

    def list(self) -> list[Version]:
        """Return all versions, oldest first."""
        found = self._client.search_model_versions(f"name = '{NAME}'")
        aliases = self._client.get_registered_model(NAME).aliases if found else {}
        versions = [
            Version(
                int(one.version),
                one.tags["fingerprint"],
                one.tags.get("commit", ""),
                one.tags.get("gate") == "passed",
                tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(one.version))),
                int(one.tags[BEFORE]) if one.tags.get(BEFORE) else None,
                one.tags.get("items", ""),
            )
            for one in found
        ]
        return sorted(versions, key=lambda version: version.number)

    def read_items(self, version: Version) -> dict[str, Any]:
        """Return items.json as it was packaged. Raises ConfigError when it is gone or was changed."""
        run, _, digest = version.items.partition(" ")
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = Path(self._client.download_artifacts(run, ITEMS, folder))
            except (MlflowException, OSError) as error:
                raise ConfigError(
                    f"version {version.number}: MLflow has no {ITEMS} of it ({error}): package it again"
                ) from error
            require(digest_file(path) == digest, f"version {version.number}: {ITEMS} in MLflow was changed")
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
            return content

    def crown(self, version: Version, before: Version | None) -> None:
        """Make a version the champion; it remembers the one before."""
        self._client.set_model_version_tag(NAME, str(version.number), BEFORE, str(before.number) if before else "")
        self._client.set_registered_model_alias(NAME, CHAMPION, str(version.number))
        if CHALLENGER in version.aliases:
            self._client.delete_registered_model_alias(NAME, CHALLENGER)

    def restore(self, version: Version, fallen: Version) -> None:
        """Put back the champion before the fallen one, which forgets that it was one."""
        self._client.set_registered_model_alias(NAME, CHAMPION, str(version.number))
        self._client.set_model_version_tag(NAME, str(fallen.number), BEFORE, "")
        if CHALLENGER in version.aliases:
            self._client.delete_registered_model_alias(NAME, CHALLENGER)
