"""Releases of this project by their hash: the one at hand, or one that dvc's cache on this machine still holds.

A release lies where the next one will overwrite it, so a model to start from is copied to a folder of its own.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from llm.config import ConfigError, require
from llm.export.hub import copy_folder
from llm.export.lineage import RELEASE, git, read_reported
from llm.export.snapshots import find_cached, find_digest
from llm.export.verify import verify

STARTS = Path("models/start")


def copy_release(release: str, repository: Path = Path(".")) -> Path:
    """Copy the Hugging Face folder of a release to models/start/HASH and return that path, relative.

    Raises: ConfigError: no release at hand and none in the local cache has this hash, or its files were changed.
    """
    target = repository / STARTS / release
    about = repository / RELEASE / "release.json"
    partial = target.with_name(f"{release}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if about.is_file() and json.loads(about.read_text())["release"] == release:
        wrong = verify(repository / RELEASE)
        require(not wrong, f"{repository / RELEASE}: differs from its SHA256SUMS: {', '.join(wrong[:5])}")
        copy_folder(repository / RELEASE / "hf", partial)
    else:
        files = find_packaged(release, repository)
        partial.mkdir(parents=True)
        for name, file in files.items():
            if name.startswith("hf/"):
                shutil.copyfile(file, partial / Path(name).name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return STARTS / release


def read_release(release: str, repository: Path = Path(".")) -> dict[str, Any]:
    """Return release.json of a release whose files are at hand, or in dvc's cache, and agree with its SHA256SUMS.

    Raises: ConfigError: they are gone or differ.
    """
    folder = repository / RELEASE
    about = folder / "release.json"
    with tempfile.TemporaryDirectory() as linked:
        if not about.is_file() or json.loads(about.read_text())["release"] != release:
            folder = Path(linked)
            for name, file in find_packaged(release, repository).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(file.resolve())
        wrong = verify(folder)
        require(
            not wrong, f"release {release}: differs from its SHA256SUMS: {', '.join(wrong[:5])}; run `dvc checkout`"
        )
        content: dict[str, Any] = json.loads((folder / "release.json").read_text())
        return content


def find_packaged(release: str, repository: Path) -> dict[str, Path]:
    """Return the files of a committed release by name, as dvc's cache holds them."""
    for commit in git(repository, "log", "--format=%H", "--", "dvc.lock").split():
        if read_reported(repository, commit) != release:
            continue
        stages = yaml.safe_load(git(repository, "show", f"{commit}:./dvc.lock")).get("stages") or {}
        files = find_cached(repository, find_digest(stages, "package", "outs", str(RELEASE)))
        if files is not None:
            return files
        raise ConfigError(
            f"release {release} was made at commit {commit[:12]}, but dvc's cache on this machine no longer holds it: "
            f"`dvc pull` it at that commit, or give the path of its hf folder"
        )
    raise ConfigError(
        f"release {release} is neither {RELEASE} nor one that a commit's reports/package.json names: "
        f"give the path of its hf folder"
    )
