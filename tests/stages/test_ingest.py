"""The ingest stage on small sources: four files per source, the same bytes each time, clear refusals."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llm.config import ConfigError
from stages.ingest import Params, run
from stages.plumbing.stage import Paths

ROOT = Path(__file__).resolve().parents[2]
BOOK = "\n\n".join(
    f"The miller of valley number {i} walked to his wheel at {i % 12} o'clock. He looked at river {i * 7}. "
    f"Nobody had seen sack {i * 3} for a week. The stones of mill {i} were turning again before the evening."
    for i in range(400)
)


def make_paths(tmp_path: Path, name: str, locator: str) -> Paths:
    lock = tmp_path / "requirements.lock"
    lock.write_text("PyYAML==6.0\n")
    deps = {
        "requirements.lock": lock,
        "data/smalltalk": ROOT / "data/smalltalk",
        "data/principles": ROOT / "data/principles",
    }
    return Paths("ingest", deps, {f"data/raw/{name}": tmp_path / "raw" / name}, name, locator)


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_a_folder_gives_all_four_files(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/book.txt").write_text(BOOK)
    (tmp_path / "texts/LICENSE").write_text("free")
    metrics = run(Params(), make_paths(tmp_path, "book", str(tmp_path / "texts")))
    assert sorted(digest(tmp_path / "raw/book")) == [
        f"{kind}.parquet" for kind in ("conversations", "documents", "preferences", "questions")
    ]
    assert metrics["skipped_files"] == {"no suffix": 1}
    rows = pq.read_table(tmp_path / "raw/book/documents.parquet").to_pylist()
    assert len(rows) == metrics["records"]["documents"] > 10  # type: ignore[index]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert {json.loads(row["meta"])["file"] for row in rows} == {"book.txt"}
    assert str(tmp_path) not in (tmp_path / "raw/book/documents.parquet").read_bytes().decode("latin-1")
    assert metrics["records"]["questions"] > 20  # type: ignore[index]


def test_pydocs_and_chat_divide_the_kinds(tmp_path: Path) -> None:
    params = Params(sample=0.5, max_chats=200)
    text = run(params, make_paths(tmp_path, "pydocs", "pydocs"))["records"]
    chat = run(params, make_paths(tmp_path, "chat", "chat"))["records"]
    assert isinstance(text, dict)
    assert isinstance(chat, dict)
    assert text["documents"] > 500
    assert text["questions"] > 50
    assert text["conversations"] == text["preferences"] == chat["documents"] == chat["questions"] == 0
    rows = pq.read_table(tmp_path / "raw/chat/conversations.parquet").to_pylist()
    assert {row["kind"] for row in rows} == {"qa", "smalltalk", "principle"}
    assert sum(row["kind"] == "qa" for row in rows) == 200
    pairs = pq.read_table(tmp_path / "raw/chat/preferences.parquet").to_pylist()
    assert {row["kind"] for row in pairs} == {"sibling", "invented", "truncated", "principle"}
    assert {row["principle"] for row in pairs if row["kind"] == "principle"} == {
        "beneficence",
        "non_maleficence",
        "autonomy",
        "justice",
    }


def test_the_same_bytes_under_another_hash_seed(tmp_path: Path) -> None:
    """Set and dict order of strings differs between processes; no output may follow it."""
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests/stages']\n"
        "from test_ingest import make_paths, run, Params\n"
        "out = Path(sys.argv[2]); out.mkdir()\n"
        "for name in ('pydocs', 'chat'):\n"
        "    run(Params(sample=0.1, max_chats=100), make_paths(out, name, name))\n"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(ROOT), str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    for name in ("pydocs", "chat"):
        assert digest(tmp_path / "1/raw" / name) == digest(tmp_path / "2/raw" / name)


@pytest.mark.parametrize("locator", ["missing.txt", "https://example.org/x/y", "empty"])
def test_a_source_without_text_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locator: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=locator):
        run(Params(), make_paths(tmp_path, "x", locator))
    assert not (tmp_path / "raw/x").exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/dangling.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(ConfigError, match=r"dangling\.txt: cannot be read: No such file"):
        run(Params(), make_paths(tmp_path, "x", str(tmp_path / "texts")))


@pytest.mark.parametrize("wrong", [{"sample": 0}, {"sample": 1.1}, {"max_chats": -1}, {"surprise": 1}])
def test_params_are_bounded(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate(wrong)


def test_editions_in_two_encodings_give_the_same_passages(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    book = BOOK.replace("Nobody", "\u201cNo caf\u00e9\u201d, she said, and nobody")
    (tmp_path / "texts/modern.txt").write_bytes(book.encode("utf-8-sig"))
    (tmp_path / "texts/old.txt").write_bytes(book.replace("\n", "\r\n").encode("cp1252"))
    run(Params(), make_paths(tmp_path, "book", str(tmp_path / "texts")))
    rows = pq.read_table(tmp_path / "raw/book/documents.parquet").to_pylist()
    texts = {name: {r["text"] for r in rows if name in r["meta"]} for name in ("modern", "old")}
    assert texts["modern"] == texts["old"]
    assert any("\u201cNo caf\u00e9\u201d" in text for text in texts["old"])
