"""The whole pipeline on the smoke recipe: every stage, nothing twice, same bytes, a served model."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

STAGES = ["ingest", "clean", "validate", "tokenize", "pretrain", "sft", "reward", "rlhf", "evaluate"]
STAGES += ["quantize", "package"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def read_report(root: Path, name: str) -> dict:
    return json.loads((root / "reports" / f"{name}.json").read_text())["metrics"]


def lock_of(root: Path) -> dict:
    return yaml.safe_load((root / "dvc.lock").read_text())["stages"]


def test_every_stage_ran_and_reported(smoke_project):
    for name in STAGES[1:]:
        assert read_report(smoke_project.root, name), name
        cost = json.loads((smoke_project.root / "reports/runs" / f"{name}.json").read_text())
        assert cost["seconds"] > 0
        assert cost["peak_memory_bytes"] < 6e9
    assert re.search(r"step \d+/200 \| loss", smoke_project.log)
    assert (smoke_project.root / "reports/report.html").stat().st_size > 10_000


def test_the_model_beats_chance_and_the_figures_have_the_published_keys(smoke_project):
    metrics = read_report(smoke_project.root, "evaluate")
    bits = metrics["bits_per_byte"]
    assert 0 < bits["base"] < metrics["baselines"]["uniform"]
    assert set(metrics["baselines"]) >= {"xz", "zstd", "ngram", "uniform"}
    for model in ("base", "sft", "policy"):
        assert set(metrics["multiple_choice"][model]) >= {"accuracy", "low", "high", "n"}
    assert set(metrics["reward"]) >= {"sft", "policy", "delta", "delta_low", "delta_high", "n"}
    assert set(metrics["kl"]) >= {"value", "bound"}
    for principle in ("beneficence", "non_maleficence", "autonomy", "justice"):
        assert set(metrics["cost"][principle]) >= {"value", "low", "high", "bound"}
    card = read_report(smoke_project.root, "quantize")["card"]
    for kind in ("original", "q8_0", "q4_0", "q4_0_rtn"):
        assert set(card[kind]) >= {"bits_per_byte", "size_bytes", "bits_per_weight", "agreement"}
    package = read_report(smoke_project.root, "package")
    assert set(package["gate"]) >= {"passed", "checks"}
    assert re.fullmatch(r"[0-9a-f]{16}", package["release"])


def test_a_second_run_executes_nothing(smoke_project):
    started = time.monotonic()
    done = smoke_project.run("dvc", "repro")
    assert "Running stage" not in done.stdout
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("stage", ["ingest@chat", "clean", "tokenize", "pretrain", "rlhf", "quantize", "package"])
def test_a_forced_stage_gives_the_same_bytes(smoke_project, stage):
    before = lock_of(smoke_project.root)[stage]
    smoke_project.run("dvc", "repro", "--force", "--single-item", stage)
    assert lock_of(smoke_project.root)[stage] == before


def test_a_killed_pretrain_continues_where_it_was(smoke_project):
    """kill -9 at a moment after the second checkpoint; the rest of the steps end in the same weights."""
    before = lock_of(smoke_project.root)["pretrain"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=smoke_project.root,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    scratch = smoke_project.root / ".scratch" / "pretrain"
    deadline = time.monotonic() + 120
    while len(list(scratch.glob("*/step-*.safetensors"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(os.urandom(1)[0] / 256)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = smoke_project.run("dvc", "repro", "--force", "--single-item", "pretrain")
    resumed = re.search(r"resumed at step (\d+)", done.stdout)
    assert resumed, done.stdout
    assert int(resumed[1]) >= 100
    assert lock_of(smoke_project.root)["pretrain"] == before


def wait_until_ready(server: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return
        except OSError:
            assert server.poll() is None, server.stdout.read()[-2000:]
            assert time.monotonic() < deadline, "the server is not ready after 90 s"
            time.sleep(0.2)


def test_the_release_answers_a_client(smoke_project):
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llm.serve", "--port", str(port)]
    path, key = f"{Path(sys.executable).parent}:{os.environ['PATH']}", secrets.token_hex()
    environment = {**os.environ, "PATH": path, "BENTOML_DO_NOT_TRACK": "True", "GRISTMILL_API_KEY": key}
    server = subprocess.Popen(
        command, cwd=smoke_project.root, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until_ready(server, port)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
        model = client.models.list().data[0].id
        messages = [{"role": "user", "content": "Hello"}]
        one, two = (
            client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12) for _ in "ab"
        )
        assert one.choices[0].message.content == two.choices[0].message.content
        assert one.usage.completion_tokens > 0
        release = read_report(smoke_project.root, "package")["release"]
        assert one.system_fingerprint.startswith(release)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
