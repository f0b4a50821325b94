"""A tiny random release, and one real server over it for all tests."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import torch
from selenium import webdriver

from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.export.gguf import write_gguf
from llm.export.verify import write_sums
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from llm.serve.release import Release
from tests.llm.serve.page_stub import Stub, run_stub

ROOT = Path(__file__).resolve().parents[3]
START_S = 150
NO_LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "tokens_per_day": 10**12}
KEY = "a-key-for-the-tests-of-this-server"
CONTEXT = 4096  # a full greedy answer takes seconds, long enough to be stopped
TEXT = "The quick brown fox jumps over the lazy dog. What does this function do? It returns a list of words.\n"

CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,800"
)
LINEAGE = {
    "corpus": {
        "sources": {"fables": {"documents": {"train": 19, "val": 1}, "licences": {"CC0-1.0": 12, "<b>MIT</b>": 8}}},
        "conversations": {"chat": 3},
        "preferences": {},
        "questions": {},
    },
    "stages": {"pretrain": {"deps": {"data/tokens": "0a1b"}, "outs": {"models/base": "2c3d"}, "params": {}}},
}


def write_release(folder: Path, passed: bool) -> None:
    tokenizer = train_tokenizer([TEXT] * 20, 320)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=32,
        mlp_size=128,
        context=CONTEXT,
        tie_embeddings=False,
    )
    model = Transformer(config)
    init_weights(model, seed=1)
    # A token with a zero row has logit 0: never the greedy choice and rarely a sampled one. So it is with the end
    # tokens, and with the bytes that would make most of the text invalid UTF-8.
    rare = [i for i, piece in enumerate(tokenizer.token_bytes()) if not piece or max(piece) >= 0x80]
    assert model.head is not None
    with torch.no_grad():
        model.head.weight.mul_(4)
        model.head.weight[rare] = 0
    save_model(model, folder / "hf")
    tokenizer.save(folder / "hf")
    write_gguf(folder / "gguf" / "model-q8_0.gguf", model, tokenizer, "f16")
    about = {
        "release": "0123456789abcdef",
        "gate": {"passed": passed, "checks": []},
        "served": "gguf/model-q8_0.gguf",
        "context": CONTEXT,
        "model": "gristmill",
    }
    (folder / "release.json").write_text(json.dumps(about))
    (folder / "lineage.json").write_text(json.dumps(LINEAGE))
    write_sums(folder)


@pytest.fixture(scope="session")
def release_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_release(folder, passed=False)
    return folder


@pytest.fixture(scope="session")
def release(release_folder: Path) -> Release:
    return Release.load(release_folder)


@pytest.fixture(scope="session")
def tokenizer(release: Release) -> Tokenizer:
    return release.tokenizer


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `running` keeps its files: server.log, and its keys."""
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="session")
def running(release_folder: Path, server_home: Path) -> Iterator[Running]:
    """`python -m llm.serve` over the tiny release."""
    with run_server(release_folder, server_home) as one:
        yield one


@pytest.fixture(scope="session")
def server(running: Running) -> str:
    """The address of that server."""
    return running.address


@pytest.fixture(scope="session")
def torch_server(release_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with the engine that gives exact log-probabilities."""
    home = tmp_path_factory.mktemp("bentoml")
    with run_server(release_folder, home, environment={"GRISTMILL_ENGINE": "torch"}) as running:
        yield running.address


@pytest.fixture
def start_server(
    release_folder: Path, tmp_path: Path
) -> Callable[[list[str], dict[str, str]], AbstractContextManager[Running]]:
    """A function that runs a server of the test's own, with arguments and environment."""
    return lambda arguments, environment: run_server(release_folder, tmp_path, arguments, environment)


@contextmanager
def run_server(
    release_folder: Path, home: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run `python -m llm.serve` until the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    params = home / "unlimited.yaml"
    params.write_text(json.dumps({"serve": {"limits": NO_LIMITS}}))
    whole = os.environ | {
        "GRISTMILL_PARAMS": str(params),
        "GRISTMILL_RELEASE": str(release_folder),
        "GRISTMILL_ENGINE": "",
        "GRISTMILL_API_KEY": KEY,
        "GRISTMILL_KEYS": str(home / "keys.json"),
        "BENTOML_HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    log = home / "server.log"
    command = [sys.executable, "-m", "llm.serve", "--port", str(port), *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=whole | dict(environment or {}), stdout=output, stderr=output)
    address = f"{'https' if '--tls-cert' in arguments else 'http'}://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield Running(address, process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=2, verify=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0, timeout=30) as one:
        yield one


@pytest.fixture
def key() -> str:
    """The API key of the servers that the fixtures run."""
    return KEY


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    """A client that sends the key and knows the server's address."""
    with httpx.Client(base_url=server, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as one:
        yield one


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in CHROMIUM_FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    one = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield one
    one.quit()


@pytest.fixture(scope="session")
def running_stub() -> Iterator[Stub]:
    with run_stub() as one:
        yield one


@pytest.fixture
def stub(running_stub: Stub) -> Iterator[Stub]:
    """The stand-in for the server behind the chat page, as it is at first."""
    yield running_stub
    running_stub.reset()
