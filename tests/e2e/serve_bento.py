"""Serve a built Bento on a local port, ask it for its model and an answer, stop it, and print what it said as JSON.

    python tests/e2e/serve_bento.py TAG

It is run inside a network namespace of its own where the machine allows one; there nothing but `lo` exists, and even
that has to be brought up first.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request

START_S = 120
SIOCSIFFLAGS, UP_AND_RUNNING = 0x8914, 0x41


def raise_loopback() -> None:
    # Not permitted outside of a namespace of our own, where it is up already.
    with socket.socket() as any_socket, contextlib.suppress(PermissionError):
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", UP_AND_RUNNING))


def reaches_the_network() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks for a route alone
        except OSError:
            return False
        return True


def ask(address: str, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
    headers = {"Authorization": f"Bearer {os.environ['GRISTMILL_API_KEY']}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        content: dict[str, object] = json.load(reply)
        return content


def wait(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit("the Bento did not start")


def main(tag: str) -> None:
    raise_loopback()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(address, process)
        chat = {"model": "gristmill", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        said = {
            "models": ask(address, "/v1/models"),
            "answer": ask(address, "/v1/chat/completions", chat),
            "network": reaches_the_network(),
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
