"""The corpora that releases were made from: data/clean of each commit's dvc.lock, read from the local dvc cache.

Only what is on this machine is looked at. A corpus that the cache no longer holds (dvc gc, or a clone that never
pulled it) is said to be gone; nothing is inferred about it.
"""

import configparser
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm.config import ConfigError
from llm.export.lineage import RELEASE, git, read_reported

CLEAN = "data/clean"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A release (empty: a run that was not packaged), its commit (empty: not committed), its data/clean's digest."""

    release: str
    commit: str
    date: str
    digest: str


def list_snapshots(repository: Path) -> list[Snapshot]:
    """Return the release at hand, then those of the commits of dvc.lock, newest first; each release once."""
    committed = list(_read_commits(repository))
    here = _read_release(repository / RELEASE)
    if here is not None and all((one.release, one.digest) != (here.release, here.digest) for one in committed):
        committed.insert(0, here)
    seen: set[tuple[str, str]] = set()
    snapshots = []
    for one in committed:
        if (one.release, one.digest) not in seen:
            seen.add((one.release, one.digest))
            snapshots.append(one)
    return snapshots


def _read_release(folder: Path) -> Snapshot | None:
    """Return the packaged release as its own lineage describes it."""
    if not (folder / "release.json").is_file() or not (folder / "lineage.json").is_file():
        return None
    release = str(json.loads((folder / "release.json").read_text())["release"])
    stages = json.loads((folder / "lineage.json").read_text())["stages"]
    digest = stages.get("clean", {}).get("outs", {}).get(CLEAN)
    return Snapshot(release, "", "", str(digest)) if digest else None


def _read_commits(repository: Path) -> Iterator[Snapshot]:
    for line in git(repository, "log", "--format=%H %cs", "--", "dvc.lock").splitlines():
        commit, date = line.split()
        try:
            stages = (yaml.safe_load(git(repository, "show", f"{commit}:./dvc.lock")) or {}).get("stages") or {}
        except ConfigError:
            continue  # this commit removed the lock
        packaged = find_digest(stages, "package", "deps", CLEAN)
        if packaged:
            yield Snapshot(read_reported(repository, commit) or "", commit, date, packaged)
        cleaned = find_digest(stages, "clean", "outs", CLEAN)
        if cleaned and cleaned != packaged:
            yield Snapshot("", commit, date, cleaned)


def find_digest(stages: Mapping[str, Any], stage: str, side: str, path: str) -> str:
    """Return what the lock says of a path in the deps or outs of a stage; "" when it says nothing."""
    found = [str(one.get("md5", "")) for one in stages.get(stage, {}).get(side, []) if one["path"] == path]
    return found[0] if found else ""


def find_files(repository: Path, digest: str) -> dict[str, Path] | None:
    """Return the files of a data/clean by name, from the cache or else the workspace; None if they are gone."""
    files = find_cached(repository, digest)
    here = repository / CLEAN
    if files is None and here.is_dir() and hash_folder(here) == digest:
        return {path.name: path for path in here.iterdir()}
    return files


def find_cached(repository: Path, digest: str) -> dict[str, Path] | None:
    """Return the files of a folder by name, as dvc's cache holds them; None if one is gone."""
    cache = find_cache(repository) / "files" / "md5"
    listing = cache / digest[:2] / digest[2:]
    if not listing.is_file():
        return None
    entries = json.loads(listing.read_text())
    files = {str(one["relpath"]): cache / one["md5"][:2] / one["md5"][2:] for one in entries}
    return files if all(path.is_file() for path in files.values()) else None


def find_cache(repository: Path) -> Path:
    """Return dvc's cache folder: `cache.dir` of the repository's config, or the default."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read([repository / ".dvc" / "config", repository / ".dvc" / "config.local"], encoding="utf8")
    return repository / ".dvc" / parser.get("cache", "dir", fallback="cache")


def hash_folder(folder: Path) -> str:
    """Return a folder's digest as dvc writes it in dvc.lock: MD5 of the list of its files with theirs."""
    entries = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        entries.append({"md5": digest, "relpath": path.relative_to(folder).as_posix()})
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
