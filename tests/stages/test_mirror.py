"""The MLflow mirror against a real database: one run per execution under one parent, and the release."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from stages.plumbing.mirror import mirror, mirror_all

STAGES = ["ingest/pydocs", "clean", "pretrain", "reward", "package"]


def execute(root: Path, name: str, minute: int, metrics: dict) -> None:
    """Write the two reports of a stage as the stage runner does."""
    report = root / "reports" / f"{name}.json"
    cost = root / "reports/runs" / f"{name}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    cost.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps({"stage": name, "metrics": metrics}))
    content = {
        "stage": name,
        "seconds": 30.0,
        "peak_memory_bytes": 10**9,
        "tokens_per_s": 6400.5,
        "finished": f"2030-01-01T02:{minute:02d}:00+0000",
        "device": "x86_64 CPU, 2 cores",
        "commit": "c0ffee" * 6 + "c0ff",
        "dirty": False,
        "report_digest": hashlib.blake2b(report.read_bytes(), digest_size=8).hexdigest(),
    }
    cost.write_text(json.dumps(content))


def package(root: Path, minute: int, release: str, passed: bool) -> None:
    """Write the reports of `package`."""
    execute(root, "package", minute, {"release": release, "gate": {"passed": passed, "checks": []}})


@pytest.fixture(autouse=True)
def _own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder as a finished pipeline leaves it."""
    (tmp_path / "params.yaml").write_text("base: {seed: 7}\nreward: {}\npretrain: {shape: {layers: 4}, lr: 0.01}\n")
    (tmp_path / "dvc.lock").write_text("stages: {ingest@pydocs: {cmd: read}}\n")
    for minute, name in enumerate(STAGES[:-1]):
        execute(tmp_path, name, minute, {"loss": {"train": 3.5, "done": True}, "note": "text is no metric"})
    package(tmp_path, 4, "0123456789abcdef", passed=True)
    for folder in ("base", "reward", "reward/second", "release"):
        (tmp_path / "models" / folder).mkdir(parents=True, exist_ok=True)
    curve = [{"step": step, "loss": 8 / step, "lr": 0.01} for step in range(1, 1501)]
    (tmp_path / "models/base/trace.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    (tmp_path / "models/reward/second/trace.jsonl").write_text('{"step": 1, "accuracy": 0.5}\n')
    return tmp_path


def read_all(root: Path) -> tuple[MlflowClient, dict[str, list[Run]]]:
    """Return a client, and the runs that MLflow holds by stage; the parents under "parent"."""
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gristmill")
    assert experiment is not None
    runs: dict[str, list[Run]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        runs.setdefault(run.data.tags.get("stage", "parent"), []).append(run)
    return client, runs


def test_each_execution_is_mirrored_once(project: Path) -> None:
    assert mirror_all(project) == STAGES
    client, runs = read_all(project)
    (parent,) = runs["parent"]
    assert {len(found) for found in runs.values()} == {1}
    assert set(runs) == {"parent", "ingest", "clean", "pretrain", "reward", "package"}
    children = [found[0] for stage, found in runs.items() if stage != "parent"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}

    pretrain = runs["pretrain"][0]
    assert pretrain.data.params == {"base.seed": "7", "pretrain.shape.layers": "4", "pretrain.lr": "0.01"}
    assert pretrain.data.metrics["loss.train"] == 3.5
    assert pretrain.data.metrics["loss.done"] == 1.0
    assert pretrain.data.metrics["run.tokens_per_s"] == 6400.5
    assert pretrain.data.tags["commit"].startswith("c0ffee")
    assert pretrain.data.tags["dvc_lock"] == parent.data.tags["dvc_lock"]
    assert pretrain.info.end_time - pretrain.info.start_time == 30_000
    curve = client.get_metric_history(pretrain.info.run_id, "curve.loss")
    assert sorted((one.step, one.value) for one in curve) == [(step, 8 / step) for step in range(1, 1501)]
    assert runs["reward"][0].data.metrics["curve.second.accuracy"] == 0.5
    assert parent.data.metrics["package.gate.passed"] == 1.0
    assert {one.path for one in client.list_artifacts(parent.info.run_id)} == {"params.yaml", "dvc.lock"}

    (project / "mlruns/mirrored").unlink()  # even where the quick test for news is lost
    assert mirror_all(project) == []
    execute(project, "clean", 9, {"loss": {"train": 3.25}})
    assert mirror_all(project) == ["clean"]
    runs = read_all(project)[1]
    assert {stage: len(found) for stage, found in runs.items() if len(found) > 1} == {"clean": 2}

    # The same report as dvc restores it from its cache, beside the cost of another execution: nothing new.
    execute(project, "clean", 10, {"loss": {"train": 3.0}})
    (project / "reports/clean.json").write_text('{"metrics": {"loss": {"train": 3.5}}}')
    assert mirror_all(project) == []


def test_a_release_is_a_model_version_and_its_alias_needs_a_pass(project: Path) -> None:
    mirror_all(project)
    client, runs = read_all(project)
    (version,) = client.search_model_versions("name = 'gristmill'")
    assert version.tags["fingerprint"] == "0123456789abcdef"
    assert version.tags["gate"] == "passed"
    assert version.run_id == runs["package"][0].info.run_id
    assert version.source == (project / "models/release").as_uri()

    package(project, 20, "fedcba9876543210", passed=False)
    assert mirror_all(project) == ["package"]
    versions = client.search_model_versions("name = 'gristmill'")
    assert {one.tags["fingerprint"]: one.tags["gate"] for one in versions} == {
        "0123456789abcdef": "passed",
        "fedcba9876543210": "failed",
    }
    challenger = client.get_model_version_by_alias("gristmill", "challenger")
    assert challenger.tags["fingerprint"] == "0123456789abcdef"


def test_a_failure_is_a_warning_and_a_field(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mirror("clean", project)
    assert not (project / "mlruns").exists()  # only the last stage connects
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, logger="gristmill"):
        mirror("package", project)
    assert "not mirrored to MLflow" in caplog.text
    cost = json.loads((project / "reports/runs/package.json").read_text())
    assert cost["mlflow"].startswith("not mirrored: ")
    assert cost["seconds"] == 30.0
