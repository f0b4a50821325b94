"""The Prefect flow on the smoke project: a task per stage in dvc's order, its log, and an artifact with metrics."""

import json
import os
import socket
import subprocess
import sys
import urllib.request

import pytest

from flows.deploy import local_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
STAGES = ["clean", "validate", "tokenize", "pretrain", "sft", "reward", "rlhf", "evaluate", "quantize", "package"]
FORCED = "validate"


def post(api: str, path: str, **body: object) -> list[dict]:
    """Return what the Prefect API answers to a filter."""
    request = urllib.request.Request(f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@pytest.fixture
def api(tmp_path):
    """Start a Prefect server with a home of its own; return its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with local_server(tmp_path, port) as address:
        yield address


def test_the_flow_runs_every_stage_and_executes_only_what_must(smoke_project, api, tmp_path):
    root = smoke_project.root
    code = f"from flows.pipeline import gristmill; gristmill(force=[{FORCED!r}])"
    environment = {**os.environ, "PYTHONPATH": str(root), "PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    flow_run = post(api, "flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]
    assert flow_run["state_type"] == "COMPLETED"
    chosen = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    tasks = sorted(post(api, "task_runs/filter", **chosen), key=lambda run: run["start_time"])
    names = [task["name"] for task in tasks]
    assert {name for name in names if name.startswith("ingest@")} == {"ingest@chat", "ingest@pydocs"}
    assert names[2:] == STAGES
    executed = [task["name"] for task in tasks if task["state_name"] == "Completed"]
    assert executed == [FORCED]
    artifacts = {one["key"]: one["data"] for one in post(api, "artifacts/filter", **chosen)}
    assert set(artifacts) == {name.replace("@", "-") for name in names}
    metrics = json.loads((root / "reports/evaluate.json").read_text())["metrics"]
    assert f"| bits_per_byte.base | {metrics['bits_per_byte']['base']:.6g} |" in artifacts["evaluate"]
    assert "reports/report.html" in artifacts["package"]
