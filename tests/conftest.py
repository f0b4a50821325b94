"""The smoke run that the end-to-end tests share: a copy of the project, run once per session by `dvc repro`."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUIET = {
    "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true", "BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "passive", "GX_ANALYTICS_ENABLED": "false", "MLFLOW_TRACKING_URI": "",
}  # fmt: skip
# A shell starts what it puts into the background with interrupts ignored, and children inherit that: processes that
# the tests interrupt would run on. With a handler of our own they start with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Project:
    """A copy of the project in which the smoke recipe has run."""

    root: Path
    log: str

    def run(self, *command: str, check: bool = True, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command of the project's venv in the copy."""
        return run_in(self.root, *command, check=check, timeout_s=timeout_s)


def run_in(root: Path, *command: str, check: bool, timeout_s: float) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **QUIET, "PATH": path}
    environment.pop("MLFLOW_TRACKING_URI")
    done = subprocess.run(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert not check or done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-4000:]}"
    return done


def copy_project(target: Path) -> Path:
    """Copy what git tracks or would track into a new repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(source.read_bytes())
    (target / "dvc.lock").unlink(missing_ok=True)  # so that the run starts from nothing, as with edited params
    for command in (["init", "-q", "-b", "main"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=target, check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "-q", "-m", "copy"], cwd=target, check=True)
    return target


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public sample data, which is no part of the project; GRISTMILL_SHARED_DATA says where it is."""
    folder = Path(os.environ.get("GRISTMILL_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder}: no sample data here; set GRISTMILL_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def smoke_project(tmp_path_factory) -> Project:
    """The whole DAG on the smoke recipe."""
    root = copy_project(tmp_path_factory.mktemp("smoke") / "project")
    run_in(root, "python", "-m", "stages.plumbing.recipe", "--recipe", "smoke", check=True, timeout_s=60)
    done = run_in(root, "dvc", "repro", check=True, timeout_s=1200)
    return Project(root, done.stdout)
