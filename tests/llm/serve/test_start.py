"""What starts, what does not, and what is said then: the server, the terminal chat, the demo, a Bento."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.export.verify import write_sums
from llm.infer.generate import generate
from llm.model.folder import load_model
from llm.serve.demo import answer
from llm.serve.release import Release
from llm.serve.text import make_printable

ROOT = Path(__file__).resolve().parents[3]


def run_module(
    name: str, *arguments: str, release: Path, text: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    whole = os.environ | {"GRISTMILL_RELEASE": str(release), "OMP_NUM_THREADS": "1"} | dict(environment or {})
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        env=whole,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )


def copy_release(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize("name", ["llm.serve", "llm.serve.chat"])
def test_missing_release_says_what_to_run(name: str, tmp_path: Path) -> None:
    done = run_module(name, release=tmp_path / "none")
    assert done.returncode == 1
    assert "run `make run` first" in done.stderr
    assert "Traceback" not in done.stderr


def test_changed_file_is_named_and_not_served(release_folder: Path, tmp_path: Path) -> None:
    folder = copy_release(release_folder, tmp_path / "release")
    with (folder / "gguf" / "model-q8_0.gguf").open("ab") as file:
        file.write(b"x")
    done = run_module("llm.serve", release=folder)
    assert done.returncode == 1
    assert "gguf/model-q8_0.gguf" in done.stderr


def test_port_in_use_is_named(release_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_module("llm.serve", "--port", port, release=release_folder)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["--tls-cert", "README.md"], {}, "are given together"),
        (["--tls-cert", "README.md", "--tls-key", "README.md"], {}, "not a PEM certificate and its key"),
        ([], {"GRISTMILL_API_KEY": "secret"}, "GRISTMILL_API_KEY: at least 16"),
        ([], {"GRISTMILL_KEYS": "README.md"}, "mend it"),
        ([], {"GRISTMILL_PARAMS": "no.yaml"}, "no such file"),
    ],
)
def test_what_the_gateway_cannot_use_is_named(
    arguments: list[str], environment: dict[str, str], message: str, release_folder: Path
) -> None:
    done = run_module("llm.serve", *arguments, release=release_folder, environment=environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("about", ["{", "{}", "[]", '{"served": 5}'])
def test_unreadable_description_is_refused(about: str, release_folder: Path, tmp_path: Path) -> None:
    folder = copy_release(release_folder, tmp_path / "release")
    (folder / "release.json").write_text(about)
    write_sums(folder)
    with pytest.raises(ConfigError, match="release.json: not a release description"):
        Release.load(folder)


def test_a_gate_that_passed_leaves_no_mark(release_folder: Path, tmp_path: Path) -> None:
    folder = copy_release(release_folder, tmp_path / "release")
    path = folder / "release.json"
    path.write_text(path.read_text().replace("false", "true"))
    write_sums(folder)
    assert Release.load(folder).fingerprint == "0123456789abcdef"
    assert Release.load(release_folder).fingerprint == "0123456789abcdef-not-released"


def test_terminal_chat_answers_forgets_and_leaves(release_folder: Path) -> None:
    lines = ["hello", "words and " * 900, "and now?", "x " * 9000, "/new", "again", "/quit", "never read"]
    done = run_module(
        "llm.serve.chat", "--seed", "1", "--max-tokens", "20", release=release_folder, text="\n".join(lines) + "\n"
    )
    assert done.returncode == 0, done.stderr
    assert "0123456789abcdef-not-released" in done.stdout
    assert "forgotten" in done.stdout
    assert "leave no room" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_demo_answers_greedily(release_folder: Path, release: Release) -> None:
    folder = release_folder / "hf"
    question = "What does it return?"
    (text,) = answer(folder, [question])
    ids = release.encode_chat([{"role": "user", "content": question}])
    greedy = generate(load_model(folder), [ids], max_new_tokens=80, temperature=0.0, stop_ids=release.stop_ids)[0]
    assert text == make_printable(release.tokenizer.decode(greedy.tokens, skip_special=True).strip())
    with pytest.raises(ConfigError, match="leaves no room"):
        answer(folder, ["x " * 9000])


def test_bento_builds_and_holds_the_release(release_folder: Path, tmp_path: Path) -> None:
    for name in ("bentofile.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "llm", tmp_path / "llm", ignore=shutil.ignore_patterns("__pycache__"))
    copy_release(release_folder, tmp_path / "models" / "release")
    home = tmp_path / ".bentoml"
    quiet = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--version", "test"],
        cwd=tmp_path,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    source = home / "bentos" / "gristmill" / "test" / "src"
    assert Release.load(source / "models" / "release").model == "gristmill"
    assert (source / "llm" / "serve" / "page" / "index.html").is_file()
    assert (source / "llm" / "serve" / "service.py").is_file()
