"""Serve the pipeline on a schedule: a local Prefect server, the nightly deployment, and its worker.

`python -m flows.deploy` runs until Ctrl-C; `--once` runs the flow now and exits with its status. With
PREFECT_API_URL set no server is started and that one is used. Everything listens on 127.0.0.1, and what
Prefect keeps lies in `.prefect/` of the project.
"""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from uuid import UUID

HOST = "127.0.0.1"
PREFECT = str(Path(sys.executable).parent / "prefect")
ENTRYPOINT = f"{Path(__file__).with_name('pipeline.py')}:gristmill"
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15
NIGHTLY = "0 2 * * *"  # 02:00 UTC
ENVIRONMENT = {  # defaults: what the caller has set stays
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "30",
}


class DeployError(RuntimeError):
    """The server, the deployment or the run could not be started."""


class ReportHandler(SimpleHTTPRequestHandler):
    """Serve the reports folder, silently."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep requests out of the terminal."""


@contextmanager
def serve_reports(folder: Path, port: int) -> Iterator[str]:
    """Serve the reports, for a browser follows no file link from the Prefect page; on any port if that is taken."""
    handler = partial(ReportHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError:
        server = ThreadingHTTPServer((HOST, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def local_server(home: Path, port: int) -> Iterator[str]:
    """Start a Prefect server and yield its API address; stop it at the end."""
    require_free(port)
    home.mkdir(parents=True, exist_ok=True)
    log_path = home / "server.log"
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [PREFECT, "server", "start", "--host", HOST, "--port", str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the worker first, which still needs the server
        )
    try:
        api = f"http://{HOST}:{port}/api"
        wait_until_healthy(api, server, log_path)
        yield api
    finally:
        stop_group(server, signal.SIGTERM)


def require_free(port: int) -> None:
    """Raise DeployError when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DeployError(
                f"port {port} is in use: give another with --port, or use the server that listens there "
                f"with PREFECT_API_URL=http://{HOST}:{port}/api"
            ) from error


def wait_until_healthy(api: str, server: subprocess.Popen[bytes], log_path: Path) -> None:
    """Return when the server answers; raise with the end of its log when it cannot."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise DeployError(f"the Prefect server did not start ({log_path}):\n{tail}")


def stop_group(process: subprocess.Popen[bytes], gently: int) -> None:
    """Stop a process and its children: first with the gentle signal, then with SIGTERM and SIGKILL."""
    for number in (gently, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue


def run_process(command: list[str]) -> int:
    """Run a command in a group of its own until it ends or we are interrupted; return its status.

    SIGINT is what stops its flow runs cleanly: each interrupts its stage, which says what it keeps.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    finally:
        stop_group(process, signal.SIGINT)


async def register(name: str, cron: str | None) -> UUID:
    """Create or update a deployment of the flow, not paused, and return its id."""
    from flows.pipeline import gristmill  # Prefect reads PREFECT_* when it is imported: not earlier

    deployment = await gristmill.to_deployment(name=name, cron=cron, paused=False)
    return await deployment.apply()


async def schedule_run(deployment: UUID) -> UUID:
    """Create a run of the deployment and return its id."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return (await client.create_flow_run_from_deployment(deployment)).id


def serve_nightly(cron: str) -> int:
    """Register the deployment with its schedule and work on its runs until interrupted."""
    asyncio.run(register("nightly", cron))  # the worker pauses it when it stops, and would leave it paused
    schedule = ["--name", "nightly", "--cron", cron, "--limit", "1"]
    return run_process([PREFECT, "flow", "serve", ENTRYPOINT, *schedule])


async def describe_run(run: UUID) -> tuple[bool, str]:
    """Return whether the run completed, and its state in words."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        state = (await client.read_flow_run(run)).state
    assert state is not None, run
    return state.is_completed(), f"{state.name}: {state.message}" if state.message else state.name


def run_once() -> int:
    """Run the flow once, as the worker does, and return 0 when the run completed.

    Not `prefect flow-run execute`: that copies the workspace to a temporary folder and runs there.
    """
    run = asyncio.run(schedule_run(asyncio.run(register("once", None))))
    run_process([sys.executable, "-m", "prefect.engine", str(run)])
    completed, words = asyncio.run(describe_run(run))
    print(f"flow run {words}", flush=True)
    return 0 if completed else 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploy", description=__doc__)
    parser.add_argument(
        "--port",
        type=int,
        default=4200,
        help="port of the local server (default 4200); the next one serves the reports",
    )
    parser.add_argument("--cron", default=NIGHTLY, help=f"schedule, UTC (default '{NIGHTLY}')")
    parser.add_argument("--once", action="store_true", help="run now and exit with the run's status")
    return parser.parse_args(arguments)


@contextmanager
def api_server(port: int) -> Iterator[str]:
    """Yield the address of the server to use: the user's, or one of our own."""
    if os.environ.get("PREFECT_API_URL"):
        yield os.environ["PREFECT_API_URL"]
        return
    with local_server(Path(os.environ["PREFECT_HOME"]), port) as api:
        os.environ["PREFECT_API_URL"] = api
        yield api


def exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exit that lets every context stop what it started."""
    sys.exit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Run the server, the schedule and the worker, or one run; return the exit status."""
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, exit_on_sigterm)
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    os.environ.setdefault("PREFECT_HOME", str(Path.cwd() / ".prefect"))
    try:
        with api_server(options.port) as api, serve_reports(Path.cwd() / "reports", options.port + 1) as reports:
            os.environ["GRISTMILL_REPORTS_URL"] = reports
            print(f"Prefect UI: {api.removesuffix('/api')}  reports: {reports}/report.html", flush=True)
            if options.once:
                return run_once()
            print(f"deployment gristmill/nightly, schedule '{options.cron}' UTC; Ctrl-C stops all", flush=True)
            return serve_nightly(options.cron)
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped")
        return 0


if __name__ == "__main__":
    sys.exit(main())
