"""What a release was made from: the lock's digests of every stage, and the corpus with its licences.

A release cannot hold its own commit, so lineage.json holds what dvc.lock says about each stage (digests of data,
code and outputs, values of params), and `python -m llm.export.lineage FINGERPRINT` finds the commit from that. When
training started from a model, lineage.json names it and the digest of its content.
It never reads the lock's entry of `package`: that one describes the release itself, and does not exist yet when
the first release is made.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from llm.config import ConfigError, InitFrom

PACKAGE = "package"
RELEASE = Path("models/release")


def read_stages(lock: Mapping[str, Any], roots: Iterable[str], sources: Iterable[str]) -> dict[str, Any]:
    """Return the stages that the roots were made by, each with the digests of deps and outs and its params.

    Args:    lock: the content of dvc.lock.  roots: paths that the release is made from (deps of package).
             sources: names of the sources in use. The lock keeps entries of sources that were removed since,
             and they lie in the same folder.
    Returns: {stage: {"deps": {path: digest}, "outs": {path: digest}, "params": {...}}}.
    """
    entries: dict[str, Any] = {
        name: entry
        for name, entry in (lock.get("stages") or {}).items()
        if name != PACKAGE and _in_use(name, set(sources))
    }
    kept: dict[str, Any] = {}
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        for name, entry in entries.items():
            outs = [str(out["path"]) for out in entry.get("outs", [])]
            if name not in kept and any(_overlap(path, out) for out in outs):
                kept[name] = summarise(entry)
                waiting += kept[name]["deps"]
    return dict(sorted(kept.items()))


def summarise(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one stage of the lock without sizes and commands: what it read, with which params, what it wrote."""
    digests = {
        side: {str(item["path"]): str(item[item.get("hash", "md5")]) for item in entry.get(side, [])}
        for side in ("deps", "outs")
    }
    params: dict[str, Any] = {}
    for values in (entry.get("params") or {}).values():
        params |= values
    return {**digests, "params": params}


def describe_corpus(clean: Path) -> dict[str, Any]:
    """Return, for each source, how many documents of which licence and split data/clean holds, and the rest.

    Languages are those of the documents, as `clean` identified them.
    """
    table = pq.read_table(clean / "documents.parquet", columns=["source", "license", "split", "meta"]).to_pylist()
    documents: dict[str, dict[str, Any]] = {}
    for source in sorted({row["source"] for row in table}):
        rows = [row for row in table if row["source"] == source]
        documents[source] = {
            "documents": dict(sorted(Counter(row["split"] for row in rows).items())),
            "licences": dict(sorted(Counter(row["license"] or "unknown" for row in rows).items())),
        }
    others = {}
    for kind in ("conversations", "preferences", "questions"):
        rows = pq.read_table(clean / f"{kind}.parquet", columns=["source"]).column("source").to_pylist()
        others[kind] = dict(sorted(Counter(rows).items()))
    languages = Counter(json.loads(row["meta"] or "{}").get("language", "unknown") for row in table)
    return {"sources": documents, "languages": dict(sorted(languages.items())), **others}


def describe_start(init_from: InitFrom | None) -> dict[str, Any]:
    """Return what lineage.json says of the model that training started from; nothing of random weights."""
    if init_from is None:
        return {}
    about = {"name": Path(init_from.path).name, "digest": init_from.digest}  # a path would be of one machine
    return {"init_from": about | ({"release": init_from.release} if init_from.release else {})}


def find_commit(fingerprint: str, release: Path = RELEASE, repository: Path = Path(".")) -> str | None:
    """Return the newest commit, of any branch, whose dvc.lock made the release of this fingerprint, or None.

    Where the release itself is at hand, its lineage is compared with the lock of each commit; else the commit's
    own reports/package.json must name the fingerprint.
    """
    lineage = _lineage_of(fingerprint, release)
    for commit in git(repository, "log", "--all", "--format=%H", "--", "dvc.lock").split():
        if lineage is not None:
            if _matches(lineage, yaml.safe_load(git(repository, "show", f"{commit}:./dvc.lock"))):
                return commit
        elif read_reported(repository, commit) == fingerprint:
            return commit
    return None


def is_current(release: Path = RELEASE, lock: Path = Path("dvc.lock")) -> bool:
    """Whether a release's lineage still says what the lock says.

    A stage that ran again and wrote the same bytes changes the lock but no input of `package`, which dvc then
    rightly skips: the release is the same, and its lineage names the code of the run before.
    """
    if not (release / "lineage.json").is_file() or not lock.is_file():
        return False
    stages = json.loads((release / "lineage.json").read_text())["stages"]
    return _matches(stages, yaml.safe_load(lock.read_text()))


def _in_use(stage: str, sources: set[str]) -> bool:
    _, at, item = stage.partition("@")
    return not at or item in sources


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other or lies inside it."""
    one, other = one.rstrip("/"), other.rstrip("/")
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _matches(stages: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    """Whether a lock says the same of every stage of a lineage."""
    entries = lock.get("stages") or {}
    return all(name in entries and summarise(entries[name]) == entry for name, entry in stages.items())


def _lineage_of(fingerprint: str, release: Path) -> dict[str, Any] | None:
    about = release / "release.json"
    if not about.is_file() or json.loads(about.read_text())["release"] != fingerprint:
        return None
    stages: dict[str, Any] = json.loads((release / "lineage.json").read_text())["stages"]
    return stages or None


def read_reported(repository: Path, commit: str) -> str | None:
    """Return the release that a commit's reports/package.json names, None where there is no such report."""
    try:
        report = json.loads(git(repository, "show", f"{commit}:./reports/package.json"))
    except ConfigError:
        return None  # this commit has no packaged report
    release = report["metrics"]["release"]
    return str(release)


def git(repository: Path, *arguments: str) -> str:
    """Return what a git command prints, or raise ConfigError with what it says."""
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def main(arguments: list[str]) -> int:
    """Print the commit that made the release of a fingerprint; `--check` compares models/release with dvc.lock."""
    if len(arguments) not in (1, 2):
        print("usage: python -m llm.export.lineage FINGERPRINT [RELEASE_DIR] | --check", file=sys.stderr)
        return 2
    if arguments == ["--check"]:
        return 0 if is_current() else 1
    fingerprint = arguments[0].removesuffix("-not-released")
    try:
        commit = find_commit(fingerprint, Path(arguments[1]) if len(arguments) == 2 else RELEASE)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if commit is None:
        print(f"no commit's dvc.lock made release {fingerprint}: was dvc.lock committed after it?", file=sys.stderr)
        return 1
    print(commit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
