"""A release by its hash: the one at hand, an earlier one from dvc's cache, and none where it is gone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm.config import ConfigError
from llm.export.hub import copy_folder
from llm.export.releases import copy_release, find_packaged, read_release
from llm.export.snapshots import find_cache
from llm.export.verify import write_sums

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
OLD, GONE, HERE = "a" * 16, "b" * 16, "c" * 16


def run(root: Path, *command: str) -> None:
    quiet = {**os.environ, "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    subprocess.run(command, cwd=root, check=True, capture_output=True, env=quiet)


def commit_release(root: Path, folder: Path, release: str) -> str:
    """Write models/release, let dvc cache it, commit a lock and a report as the DAG would; return its digest."""
    out = root / "models/release"
    shutil.rmtree(out, ignore_errors=True)
    copy_folder(folder, out / "hf")
    (out / "release.json").write_text(json.dumps({"release": release}))
    write_sums(out)
    run(root, sys.executable, "-m", "dvc", "add", "-q", "models/release")
    digest = str(yaml.safe_load((root / "models/release.dvc").read_text())["outs"][0]["md5"])
    stages = {"package": {"cmd": "y", "outs": [{"path": "models/release", "hash": "md5", "md5": digest}]}}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports/package.json").write_text(json.dumps({"metrics": {"release": release}}))
    run(root, "git", "add", "dvc.lock", "reports")
    run(root, *GIT, "commit", "-q", "-m", release)
    return digest


@pytest.fixture(scope="module")
def repository(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three releases that differ in config.json; the cache has lost the second."""
    root = tmp_path_factory.mktemp("releases")
    run(root, "git", "init", "-q")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    digests = {}
    for release in (OLD, GONE, HERE):
        model = shutil.copytree(folder, root / "model", dirs_exist_ok=True)
        (model / "config.json").write_text((folder / "config.json").read_text() + f"\n{' ' * len(digests)}")
        digests[release] = commit_release(root, model, release)
    (find_cache(root) / "files/md5" / digests[GONE][:2] / digests[GONE][2:]).unlink()
    return root


@pytest.mark.parametrize(("release", "spaces"), [(OLD, 0), (HERE, 2)], ids=["from the cache", "at hand"])
def test_a_release_is_copied_to_a_folder_of_its_own(repository: Path, folder: Path, release: str, spaces: int) -> None:
    for _ in range(2):  # again: the copy is made anew
        path = repository / copy_release(release, repository)
        assert path == repository / "models/start" / release
        assert (path / "config.json").read_text() == (folder / "config.json").read_text() + "\n" + " " * spaces
        assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert (path / "tokenizer.json").is_file()


@pytest.mark.parametrize("release", [OLD, HERE], ids=["from the cache", "at hand"])
def test_a_release_that_verifies_is_read(repository: Path, release: str) -> None:
    assert read_release(release, repository) == {"release": release}
    with pytest.raises(ConfigError, match="dvc pull"):
        read_release(GONE, repository)


def test_a_release_that_the_cache_holds_changed_is_not_read(repository: Path) -> None:
    file = find_packaged(OLD, repository)["hf/config.json"]
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content + b" ")
    with pytest.raises(ConfigError, match=r"differs from its SHA256SUMS: hf/config.json \(changed\)"):
        read_release(OLD, repository)
    file.write_bytes(content)


def test_what_is_gone_is_said(repository: Path) -> None:
    with pytest.raises(ConfigError, match=f"release {GONE} was made at commit [0-9a-f]+, but .*dvc pull"):
        copy_release(GONE, repository)
    with pytest.raises(ConfigError, match="neither models/release nor one that .*give the path of its hf folder"):
        copy_release("d" * 16, repository)


def test_a_changed_release_is_no_start(repository: Path) -> None:
    config = repository / "models/release/hf/config.json"
    text = config.read_text()
    config.unlink()  # dvc may have linked it to its cache
    config.write_text(text + " ")
    with pytest.raises(ConfigError, match=r"differs from its SHA256SUMS: hf/config.json \(changed\)"):
        copy_release(HERE, repository)
    config.write_text(text)
