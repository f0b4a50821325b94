"""The Bento: built and served with no network, from an empty folder, and an image that a linter finds no fault with."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.serve.params import ServeParams
from llm.serve.release import Release
from tests.llm.serve.conftest import write_release

ROOT = Path(__file__).resolve().parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")
UNSHARE = ["unshare", "--map-root-user", "--net"]
# Any client that would use the network asks this proxy, which nobody is.
NO_NETWORK = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
pytestmark = pytest.mark.slow


def isolate() -> list[str]:
    """Return what to put before a command so that it has no network; nothing where the machine does not allow it."""
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return UNSHARE if done.returncode == 0 else []


def run(command: list[str], folder: Path, home: Path) -> str:
    quiet = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRISTMILL_")}
    environment |= quiet | NO_NETWORK | {"GRISTMILL_API_KEY": "the-key-of-this-test-alone"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BENTOML_HOME, with the Bento `gristmill:test` of a tiny release in it; the project that it came from is gone."""
    project = tmp_path_factory.mktemp("project")
    for name in ("bentofile.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, project / name)
    (project / "params.yaml").write_text("serve: {max_queue: 7}\n")
    for name in ("llm", "deploy"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_release(project / "models" / "release", passed=True)
    home = tmp_path_factory.mktemp("bentoml")
    run([*isolate(), sys.executable, "-m", "bentoml", "build", "--version", "test"], project, home)
    shutil.rmtree(project)
    return home


def test_it_holds_the_release_the_code_and_the_params(home: Path) -> None:
    source = home / "bentos" / "gristmill" / "test" / "src"
    assert Release.load(source / "models" / "release").model == "gristmill"
    assert (source / "llm" / "serve" / "page" / "index.html").is_file()
    assert (source / "llm" / "serve" / "service.py").is_file()
    assert ServeParams.read(source / "params.yaml").max_queue == 7
    assert (home / "bentos/gristmill/test/env/python/requirements.txt").read_text().count("==") > 200


def test_it_is_served_from_an_empty_folder_with_no_network(home: Path, tmp_path: Path) -> None:
    isolation = isolate()
    script = Path(__file__).with_name("serve_bento.py")
    said: dict[str, Any] = json.loads(run([*isolation, sys.executable, str(script), "gristmill:test"], tmp_path, home))
    (model,) = said["models"]["data"]
    assert model["metadata"]["fingerprint"] == "0123456789abcdef"
    assert said["answer"]["usage"]["completion_tokens"] == 8
    if isolation:
        assert said["network"] is False


def lint(dockerfile: Path) -> str:
    return subprocess.run([HADOLINT, "--no-color", dockerfile], capture_output=True, text=True, check=False).stdout


def test_the_dockerfile_of_containerize_passes_a_linter(home: Path, tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    program = f"import bentoml; bentoml.container.get_containerfile('gristmill:test', output_path={str(dockerfile)!r})"
    run([sys.executable, "-c", program], Path("/"), home)  # `make image` says why from there
    assert lint(dockerfile) == ""
    assert dockerfile.read_text() == (home / "bentos/gristmill/test/env/docker/Dockerfile").read_text()
    with dockerfile.open("a") as file:
        file.write("\nUSER root\nRUN pip install uv\n")
    assert "DL3013" in lint(dockerfile)  # the linter does find fault
