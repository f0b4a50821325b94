"""The pipeline as a Prefect flow: one task per dvc stage, in dvc's own order.

Prefect schedules, streams and records; what is stale is decided by dvc alone. So a task is nothing but
`dvc repro --single-item <stage>` in the current workspace, with Prefect's cache off, and this file knows
stages by name (processes) and by their reports (JSON), never by import.
It refuses to run two stages at once: dvc locks the workspace.
"""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

NUM_REASON_LINES = 15
STOP_TIMEOUT_S = 20
INGEST_RETRIES = 2  # only ingest reads from outside this machine; any other stage fails the same way twice


class StageFailed(RuntimeError):
    """A stage's process ended with an error; the message ends with the last lines that it printed."""


def dvc_command(*arguments: str) -> list[str]:
    """Return a dvc command line that uses the dvc beside the running Python."""
    return [str(Path(sys.executable).parent / "dvc"), *arguments]


def process_environment() -> dict[str, str]:
    """Return the environment of a dvc process: `python` in dvc.yaml means the running one."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": search, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}


def list_stages() -> list[str]:
    """Return the names of all stages in the order in which dvc would run them (foreach expanded)."""
    command = dvc_command("repro", "--dry", "--force")
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageFailed(f"dvc cannot read the pipeline in {Path.cwd()}:\n{done.stderr.strip()}")
    starts = [line for line in done.stdout.splitlines() if line.startswith("Running stage '")]
    return [line.split("'")[1] for line in starts]


@contextmanager
def stage_process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a group of its own, and leave none of that group behind."""
    process = subprocess.Popen(
        command,
        env=process_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Interrupt first: a stage then says what it keeps, and dvc waits for it and frees its lock.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    continue


def stream_lines(command: list[str]) -> Iterator[str]:
    """Yield each line of output as it is printed; raise StageFailed when the command fails."""
    last: deque[str] = deque(maxlen=NUM_REASON_LINES)
    with stage_process(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                last.append(line.rstrip())
                yield line.rstrip()
        status = process.wait()
    if status:
        raise StageFailed(f"{command[-1]} failed (exit status {status}):\n" + "\n".join(last))


def flatten(metrics: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) for every scalar of nested metrics."""
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool) or value is None:
            yield f"{prefix}{key}", value


def render_markdown(stage: str, unchanged: bool) -> str:
    """Return the artifact of one stage: what happened, its metrics and where its report is."""
    report = Path("reports") / f"{stage.replace('@', '/')}.json"
    lines = [f"# {stage}", "", "Up to date: dvc had nothing to run." if unchanged else "Executed."]
    if report.exists():
        metrics = json.loads(report.read_text(encoding="utf-8")).get("metrics", {})
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in flatten(metrics)]
        lines += ["", f"Report: {link_to(report)}"]
    page = Path("reports/report.html")
    if page.exists():
        lines += ["", f"All stages: {link_to(page)}"]
    return "\n".join(lines)


def link_to(path: Path) -> str:
    """Return a markdown link; a page served over HTTP may not open file links, so prefer an address."""
    base = os.environ.get("GRISTMILL_REPORTS_URL")
    address = f"{base}/{path.relative_to('reports').as_posix()}" if base else path.resolve().as_uri()
    return f"[{path.as_posix()}]({address})"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, force: bool = False) -> State:
    """Bring one stage up to date, streaming its output to the run's log."""
    log = get_run_logger()
    options = ["--single-item", *(["--force"] if force else [])]
    unchanged = False
    for line in stream_lines(dvc_command("repro", *options, stage)):
        unchanged = unchanged or line == f"Stage '{stage}' didn't change, skipping"
        log.info("%s", line)
    key = "".join(c if c.isalnum() else "-" for c in stage.lower())
    create_markdown_artifact(render_markdown(stage, unchanged), key=key, description=f"metrics of {stage}")
    if unchanged:
        return Completed(name="Unchanged", message="up to date: dvc had nothing to run")
    return Completed(message="executed")


def task_for(stage: str):
    """Return the task of a stage: named like it, and retried only where the outside world can fail."""
    if stage.split("@")[0] == "ingest":
        return run_stage.with_options(name=stage, retries=INGEST_RETRIES)
    return run_stage.with_options(name=stage)


@flow(name="gristmill", persist_result=False, validate_parameters=True)
def gristmill(force: list[str] | None = None) -> list[str]:
    """Run every stage that is out of date, in dvc's order; stop at the first failure.

    Args: force: names of stages to run although nothing has changed.
    """
    stages = list_stages()
    unknown = sorted(set(force or []) - set(stages))
    if unknown:
        raise ValueError(f"force names no stage: {', '.join(unknown)}; stages are {', '.join(stages)}")
    for stage in stages:
        task_for(stage)(stage, force=stage in (force or []))
    return stages
