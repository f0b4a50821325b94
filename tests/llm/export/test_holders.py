"""Which releases hold a record, asked of a real repository with a real dvc cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm.data.schema import Conversation, Document, Preference, Question, hash_id, write_rows
from llm.export.holders import main
from llm.export.snapshots import find_cache, find_files, hash_folder, list_snapshots

MILL = "The miller opens the sluice before dawn, and the great wheel turns until the last sack of rye is ground."
LETTER = "Dear Ada, the barley that you sent was wet, so that we had to spread it on the floor for nine days."
KEPT, LETTER_ID, CHAT_ID = (hash_id(name) for name in ("mill", "letter", "chat"))
GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]


def write_clean(folder: Path, with_letter: bool) -> None:
    splits = {"a": "train", "b": "val"}
    documents = [Document(KEPT, f"Of mills.\n{MILL}\nThat is all.", "book", "", "", "{}", "a")]
    documents += [Document(LETTER_ID, LETTER, "letters", "", "", "{}", "b")] * with_letter
    answer = f"She wrote: {LETTER}" if with_letter else "She wrote nothing."
    messages = [{"role": "user", "content": "What did she write?"}, {"role": "assistant", "content": answer}]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "documents.parquet", Document, documents, splits)
    write_rows(
        folder / "conversations.parquet", Conversation, [Conversation(CHAT_ID, "a", "chat", "qa", messages)], splits
    )
    write_rows(folder / "preferences.parquet", Preference, [], splits)
    write_rows(folder / "questions.parquet", Question, [], splits)


def run(root: Path, *command: str) -> None:
    quiet = {**os.environ, "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    subprocess.run(command, cwd=root, check=True, capture_output=True, env=quiet)


def commit_run(root: Path, release: str, with_letter: bool) -> str:
    """Write data/clean, let dvc cache it, and commit a lock and a report as the DAG would; return the digest."""
    write_clean(root / "data/clean", with_letter)
    run(root, sys.executable, "-m", "dvc", "add", "-q", "data/clean")
    digest = str(yaml.safe_load((root / "data/clean.dvc").read_text())["outs"][0]["md5"])
    out = {"path": "data/clean", "hash": "md5", "md5": digest}
    stages = {"clean": {"cmd": "x", "outs": [out]}, "package": {"cmd": "y", "deps": [out]}}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports/package.json").write_text(json.dumps({"metrics": {"release": release}}))
    run(root, "git", "add", "dvc.lock", "reports")
    run(root, *GIT, "commit", "-q", "-m", release)
    return digest


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Three releases: the first and second hold a letter, the third does not; the cache has lost the first."""
    root = tmp_path_factory.mktemp("holders")
    run(root, "git", "init", "-q")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    first = commit_run(root, "a" * 16, True)
    (root / "data/clean/extra.txt").write_text("makes the second corpus another one")
    second = commit_run(root, "b" * 16, True)
    (root / "data/clean/extra.txt").unlink()
    third = commit_run(root, "c" * 16, False)
    cache = find_cache(root) / "files/md5"
    (cache / first[:2] / first[2:]).unlink()
    return root, [first, second, third]


def ask(repository: Path, query: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main([query, "--repository", str(repository)]) == 0
    return capsys.readouterr().out.splitlines()


def test_releases_are_listed_newest_first(repository: tuple[Path, list[str]]) -> None:
    root, digests = repository
    snapshots = list_snapshots(root)
    assert [one.release[0] for one in snapshots] == ["c", "b", "a"]
    assert [one.digest for one in snapshots] == digests[::-1]
    assert len(set(digests)) == 3


def test_an_id_is_found_where_it_is_and_said_to_be_unknown_where_the_data_is_gone(
    repository: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, digests = repository
    lines = ask(root, LETTER_ID.upper(), capsys)
    assert [line.split(": ")[1].split(";")[0] for line in (lines[0], lines[1], lines[3])] == [
        "not held",
        "held, 1 record(s)",
        "unknown",
    ]
    assert lines[2] == f"  val: {LETTER_ID} (documents of letters)"
    assert digests[0] in lines[3]
    assert "release bbbbbbbbbbbbbbbb (commit " in lines[1]


def test_a_sentence_is_found_in_every_kind_of_record(
    repository: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, _ = repository
    sentence = LETTER.upper().replace(",", " -")
    found = ask(root, sentence, capsys)
    assert found[0].endswith("not held")
    assert [line.split(" (")[0] for line in found[2:4]] == [f"  train: {CHAT_ID}", f"  val: {LETTER_ID}"]
    (tmp_path / "letter.txt").write_text(f"A file that begins with other words.\n\n{LETTER}")
    assert ask(root, str(tmp_path / "letter.txt"), capsys) == found
    assert (
        ask(root, "and the great wheel turns", capsys)[1] == f"  train: {KEPT} (documents of book, 5 words in common)"
    )
    assert ask(root, "a sentence that stands in no record of theirs", capsys)[1].endswith("not held")


def test_the_release_at_hand_counts_before_it_is_committed(
    repository: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(repository[0], root)
    write_clean(root / "data/clean", True)  # as in the release that the cache has lost, but with another source
    (root / "data/clean/note.txt").write_text("one more file")
    digest = hash_folder(root / "data/clean")
    (root / "models/release").mkdir(parents=True)
    (root / "models/release/release.json").write_text(json.dumps({"release": "d" * 16}))
    lineage = {"stages": {"clean": {"outs": {"data/clean": digest}}}}
    (root / "models/release/lineage.json").write_text(json.dumps(lineage))
    assert ask(root, LETTER_ID, capsys)[0] == f"release {'d' * 16} (models/release, not committed): held, 1 record(s)"
    assert find_files(root, digest) is not None


def test_the_digest_of_a_folder_is_dvcs(repository: tuple[Path, list[str]]) -> None:
    root, digests = repository
    assert hash_folder(root / "data/clean") == digests[-1]


def test_the_cache_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    assert find_cache(tmp_path) == tmp_path / ".dvc/cache"
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n['remote \"far\"']\n    url = s3://x\n")
    (tmp_path / ".dvc/config.local").write_text("[cache]\n    dir = /var/cache/dvc\n")
    assert find_cache(tmp_path) == Path("/var/cache/dvc")


@pytest.mark.parametrize("query", ["two words", ""])
def test_what_cannot_be_looked_for_is_refused(
    repository: tuple[Path, list[str]], query: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([query, "--repository", str(repository[0])]) == 1
    assert "give an id, or 5 words or more" in capsys.readouterr().err


def test_nothing_was_released(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, *GIT, "commit", "-q", "--allow-empty", "-m", "empty")
    assert main([KEPT, "--repository", str(tmp_path)]) == 1
    assert "nothing was released" in capsys.readouterr().err
