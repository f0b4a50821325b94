"""The flow against a real Prefect server: order, log, artifacts, retries, failures, the schedule, Ctrl-C."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from flows.deploy import DeployError, local_server

pytestmark = pytest.mark.slow
TIMEOUT_S = 120


def post(api: str, path: str, **body: object) -> list[dict]:
    """Return what the Prefect API answers to a filter."""
    request = urllib.request.Request(f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def run_flow(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the deployment once, in the current folder."""
    return subprocess.run(
        [sys.executable, "-m", "flows.deploy", "--once"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def newest_run(api: str) -> dict:
    """Return the newest flow run that began."""
    runs = post(api, "flow_runs/filter", sort="START_TIME_DESC", limit=20)
    return next(run for run in runs if run["start_time"])


def task_runs(api: str, flow_run: dict) -> list[dict]:
    """Return the task runs of a flow run in the order in which they ran."""
    chosen = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    runs = post(api, "task_runs/filter", **chosen)
    return sorted(runs, key=lambda run: run["start_time"])


def log_of(api: str, flow_run: dict) -> str:
    """Return the log of a flow run and its tasks."""
    records = post(api, "logs/filter", logs={"flow_run_id": {"any_": [flow_run["id"]]}}, sort="TIMESTAMP_ASC")
    return "\n".join(record["message"] for record in records)


def test_run_then_nothing_then_failure(project: Path, prefect_environment: dict[str, str]) -> None:
    api = prefect_environment["PREFECT_API_URL"]
    first = run_flow(prefect_environment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (project / "data/release").exists()  # it ran here, not in a copy of the workspace
    flow_run = newest_run(api)
    tasks = task_runs(api, flow_run)
    assert [run["name"] for run in tasks] == ["ingest@alpha", "ingest@beta", "train", "publish"]
    assert [run["run_count"] for run in tasks] == [2, 1, 1, 1]  # alpha's first attempt fails
    assert [run["state_name"] for run in tasks] == ["Completed"] * 4
    assert "step 1/1 | loss 3.412" in log_of(api, flow_run)
    artifact = post(api, "artifacts/filter", artifacts={"key": {"any_": ["train"]}})[0]
    assert "| by.source.alpha | 7 |" in artifact["data"]
    assert "reports/train.json" in artifact["data"]

    (project / "broken").touch()
    (project / "params.yaml").write_text("ingest: {sources: {alpha: {words: 9}, beta: {words: 8}}}\n")
    second = run_flow(prefect_environment)
    assert second.returncode == 1
    flow_run = newest_run(api)
    assert flow_run["state_type"] == "FAILED"
    assert "train: the loss is not finite at step 7" in flow_run["state"]["message"]
    assert "train: the loss is not finite at step 7" in second.stdout
    tasks = task_runs(api, flow_run)
    assert [(run["name"], run["state_name"]) for run in tasks] == [
        ("ingest@alpha", "Completed"),
        ("ingest@beta", "Unchanged"),
        ("train", "Failed"),
    ]
    assert tasks[-1]["run_count"] == 1


def test_nightly_schedule_and_clean_interrupt(project: Path, prefect_environment: dict[str, str]) -> None:
    api = prefect_environment["PREFECT_API_URL"]
    (project / "slow").touch()
    (project / "attempted").touch()
    with (project / "deploy.log").open("wb") as log:
        deploy = subprocess.Popen(
            [sys.executable, "-m", "flows.deploy", "--cron", "30 3 * * *"],
            env=prefect_environment,
            stdout=log,
            stderr=log,
        )
    try:
        nightly = wait_for(lambda: find_scheduled(api, "30 3 * * *"))
        post(api, f"deployments/{nightly['id']}/create_flow_run")
        wait_for((project / "waiting").exists)
        deploy.send_signal(signal.SIGINT)
        assert deploy.wait(TIMEOUT_S) == 0, (project / "deploy.log").read_text()
    finally:
        deploy.kill()
        deploy.wait()
    (project / "waiting").unlink()
    (project / "slow").unlink()
    assert find_scheduled(api, "30 3 * * *") is None  # paused: nobody works on it any more
    dvc = str(Path(sys.executable).parent / "dvc")
    again = subprocess.run([dvc, "repro"], env=prefect_environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr  # dvc's lock is free: the stage's process is gone
    assert not (project / "waiting").exists()


def find_scheduled(api: str, cron: str) -> dict | None:
    """Return the nightly deployment while it is ready, not paused, and has the given schedule."""
    for deployment in post(api, "deployments/filter"):
        schedules = [one["schedule"].get("cron") for one in deployment["schedules"] if one["active"]]
        if schedules == [cron] and not deployment["paused"]:
            return deployment
    return None


def wait_for(condition):
    """Return the first true value of the condition."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("the condition did not come true in time")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(DeployError, match=rf"port {port} is in use.*--port"),
            local_server(tmp_path, port),
        ):
            pass
