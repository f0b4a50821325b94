"""A miniature dvc project, and one Prefect server shared by all tests of the flow."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.deploy import local_server

ROOT = Path(__file__).parents[2]
DVC = str(Path(sys.executable).parent / "dvc")

# `ingest@alpha` fails on its first attempt; `train` fails while a file named `broken` exists, and waits while
# one named `slow` does. `publish` is written first: dvc's order is not the file's.
DAG = """
stages:
  publish:
    cmd: cp data/model data/release
    deps: [data/model]
    outs: [data/release]
  ingest:
    foreach: ${ingest.sources}
    do:
      cmd: python ingest.py ${key} ${item.words}
      deps: [ingest.py]
      outs: ["data/${key}"]
  train:
    cmd: python train.py
    deps: [data/alpha, data/beta]
    outs: [data/model]
"""
INGEST = """
import pathlib, sys
name, words = sys.argv[1:]
marker = pathlib.Path("attempted")
if name == "alpha" and not marker.exists():
    marker.touch()
    sys.exit("ingest: the source did not answer")
pathlib.Path("data").mkdir(exist_ok=True)
pathlib.Path("data", name).write_text(words)
"""
TRAIN = """
import json, pathlib, sys, time
print("step 1/1 | loss 3.412")
if pathlib.Path("broken").exists():
    sys.exit("train: the loss is not finite at step 7")
while pathlib.Path("slow").exists():
    pathlib.Path("waiting").touch()
    time.sleep(0.1)
pathlib.Path("data/model").write_text("weights")
pathlib.Path("reports").mkdir(exist_ok=True)
report = {"stage": "train", "metrics": {"loss": 3.412, "by": {"source": {"alpha": 7}}, "note": "a|b"}}
pathlib.Path("reports/train.json").write_text(json.dumps(report))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a dvc project with four stages, made the current folder."""
    (tmp_path / "dvc.yaml").write_text(DAG)
    (tmp_path / "params.yaml").write_text("ingest: {sources: {alpha: {words: 7}, beta: {words: 8}}}\n")
    (tmp_path / "ingest.py").write_text(INGEST)
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([DVC, "init", "--no-scm", "-q"], cwd=tmp_path, env=environment, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def prefect_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a Prefect server with a home of its own; return the environment of its clients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    with local_server(home, port) as api:
        yield {
            **os.environ,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": api,
            "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "0",
            "PYTHONPATH": str(ROOT),
        }
