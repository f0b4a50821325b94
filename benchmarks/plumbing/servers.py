"""Servers as processes of their own, on 127.0.0.1 and a free port: ours, and llama.cpp's. Standard library only.

Both run in the project's venv, whatever the benchmark runs in.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
START_S = 120
STOP_S = 40


@dataclass(frozen=True)
class Server:
    """Where it listens, the key that it takes, and its process."""

    port: int
    key: str
    pid: int


def make_stand_in(kind: str, folder: Path) -> Path:
    """Write a release of random weights and return its folder; see `stand_ins`."""
    subprocess.run([PYTHON, "-m", "benchmarks.plumbing.stand_ins", kind, folder], cwd=ROOT, check=True)
    return folder


@contextmanager
def serve(release: Path, folder: Path, settings: dict[str, str]) -> Iterator[Server]:
    """Run `python -m llm.serve` over a release, with variables for its environment. Log and keys go to `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"GRISTMILL_RELEASE": str(release), "GRISTMILL_KEYS": str(folder / "keys.json")}
    key = _make_key(environment)
    log = folder / "server.log"
    command = [PYTHON, "-m", "llm.serve", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment | settings, stdout=out, stderr=out)
        try:
            _wait_until_ready(process, port, log)
            yield Server(port, key, process.pid)
        finally:
            _stop(process)


@contextmanager
def serve_llamacpp(gguf: Path, *, threads: int, slots: int, context: int) -> Iterator[Server]:
    """Run llama.cpp's server; `slots` requests of `context` tokens run at once."""
    options = [f"--{name}={value}" for name, value in (("threads", threads), ("slots", slots), ("context", context))]
    command = [PYTHON, "-m", "benchmarks.plumbing.llamacpp_server", gguf, *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline()
        if not address:
            sys.exit("error: llama.cpp's server did not start; run benchmarks.plumbing.llamacpp_server to see why")
        yield Server(int(address.strip().rsplit(":", 1)[1]), "none", process.pid)
    finally:
        process.kill()  # it holds nothing that must be written
        process.wait()


def _make_key(environment: dict[str, str]) -> str:
    """Return a key that no limit stops: the load is what is measured."""
    names = ("requests-per-minute", "tokens-per-minute", "parallel", "tokens-per-day")
    limits = [f"--{name}={10**9}" for name in names]
    command = [PYTHON, "-m", "llm.serve.keys", "create", "--name", "benchmark", *limits]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return done.stdout.strip()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _is_ready(port):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"error: the server did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
