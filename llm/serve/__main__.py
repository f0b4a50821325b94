"""Serve the release: check it, say where it will be and with which key, and hand over to `bentoml serve`.

The check comes first because a BentoML worker that cannot start is started again for ever. Without --host nobody but
this machine can reach the server. The key is made for this run, unless GRISTMILL_API_KEY holds one; those of
`python -m llm.serve.keys` are valid beside it.
"""

import argparse
import os
import secrets
import socket
import ssl
import sys
from pathlib import Path

from llm.config import ConfigError, require
from llm.serve.keys import check_run_key, find_keys_file, read_keys
from llm.serve.params import ServeParams
from llm.serve.release import find_releases, load_releases

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
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM certificate: serve https; with --tls-key")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM key of the certificate, without a password")
    options = parser.parse_args()
    folders, keys = [folder.resolve() for folder in find_releases()], find_keys_file().resolve()
    run_key = os.environ.get("GRISTMILL_API_KEY") or secrets.token_urlsafe(32)
    try:
        ServeParams.read()
        releases = load_releases(folders)
        check_run_key(run_key)
        read_keys(keys)
        tls = _check_tls(options.tls_cert, options.tls_key)
        _check_port(options.host, options.port)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    address = f"{'https' if tls else 'http'}://{options.host}:{options.port}"
    for release in releases:
        print(f"{release.model} {release.fingerprint}: chat at {address}/, API at {address}/v1")
        if not release.passed:
            print("This candidate did not pass its release gate: it is served marked as not released.")
    if not tls and not options.host.startswith("127."):
        print(f"Keys and texts travel to {options.host} in the clear: say --tls-cert and --tls-key.")
    if run_key != os.environ.get("GRISTMILL_API_KEY"):
        print(f"key for this run: {run_key}\nsign in: {address}/#key={run_key}")
    sys.stdout.flush()
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "true"}
    ours = {
        "GRISTMILL_RELEASE": os.pathsep.join(map(str, folders)),
        "GRISTMILL_KEYS": str(keys),
        "GRISTMILL_API_KEY": run_key,
    }
    environment = os.environ | quiet | ours
    if "GRISTMILL_PARAMS" in environment:
        environment["GRISTMILL_PARAMS"] = str(Path(environment["GRISTMILL_PARAMS"]).resolve())
    # BentoML keeps the counts of a run there, and deletes those that it finds: two servers need two folders.
    home = Path(environment.get("BENTOML_HOME") or ROOT / ".bentoml")
    environment["BENTOML_HOME"] = str(home / f"port-{options.port}")
    os.chdir(ROOT)  # BentoML imports the service from the working folder
    listen = ["--host", options.host, "--port", str(options.port), *tls]
    os.execve(sys.executable, [sys.executable, "-m", "bentoml", "serve", SERVICE, *listen], environment)


def _check_tls(cert: Path | None, key: Path | None) -> list[str]:
    """Return BentoML's options for TLS; none without a certificate. Raises ConfigError when it cannot be used."""
    if cert is None and key is None:
        return []
    require(cert is not None and key is not None, "--tls-cert and --tls-key are given together")
    try:
        # The empty password: OpenSSL would ask for one, and so would the worker, where nobody answers.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(str(cert), str(key), password="")
    except OSError as error:
        require(False, f"--tls-cert {cert}, --tls-key {key}: not a PEM certificate and its key ({error})")
    return ["--ssl-certfile", str(Path(str(cert)).resolve()), "--ssl-keyfile", str(Path(str(key)).resolve())]


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            require(False, f"cannot listen on {host}:{port} ({error}); choose another --port")


if __name__ == "__main__":
    main()
