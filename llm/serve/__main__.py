"""Serve the release: check it, say where it will be, and hand over to `bentoml serve`.

The check comes first because a BentoML worker that cannot start is started again for ever. Without --host nobody but
this machine can reach the server.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

from llm.config import ConfigError, require
from llm.serve.release import Release, find_release

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "llm.serve.service:Gristmill"


def main() -> None:
    """Replace this process with `bentoml serve`, or exit with one line that says what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m llm.serve",
        description="Serve the packaged release.",
        epilog="GRISTMILL_ENGINE=torch serves its Hugging Face folder, with log-probabilities of given tokens "
        "(/v1/completions: echo, logprobs), as evaluation harnesses ask for them.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on (default: %(default)s)")
    options = parser.parse_args()
    folder = find_release().resolve()
    try:
        release = Release.load(folder)
        _check_port(options.host, options.port)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    address = f"http://{options.host}:{options.port}"
    print(f"{release.model} {release.fingerprint}: chat at {address}/, API at {address}/v1")
    if not release.passed:
        print("This candidate did not pass its release gate: it is served marked as not released.")
    sys.stdout.flush()
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "true"}
    environment = os.environ | quiet | {"GRISTMILL_RELEASE": str(folder)}
    environment.setdefault("BENTOML_HOME", str(ROOT / ".bentoml"))
    os.chdir(ROOT)  # BentoML imports the service from the working folder
    listen = ["--host", options.host, "--port", str(options.port)]
    os.execve(sys.executable, [sys.executable, "-m", "bentoml", "serve", SERVICE, *listen], environment)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            require(False, f"cannot listen on {host}:{port} ({error}); choose another --port")


if __name__ == "__main__":
    main()
