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


def make_paths(tmp_path: Path, name: str, locator: str, **entry: object) -> Paths:
    lock = tmp_path / "requirements.lock"
    lock.write_text("PyYAML==6.0\n")
    deps = {
        "requirements.lock": lock,
        "data/smalltalk": ROOT / "data/smalltalk",
        "data/principles": ROOT / "data/principles",
    }
    source = {"path": locator, "watch": "requirements.lock", **entry}
    return Paths("ingest", deps, {f"data/raw/{name}": tmp_path / "raw" / name}, name, source)


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_a_folder_gives_all_four_files(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/book.txt").write_text(BOOK)
    (tmp_path / "texts/LICENSE").write_text("free")
    metrics = run(Params(), make_paths(tmp_path, "book", str(tmp_path / "texts")))
    kinds = ("conversations", "documents", "preferences", "questions", "rejects")
    assert sorted(digest(tmp_path / "raw/book")) == sorted(["ledger.json", *(f"{kind}.parquet" for kind in kinds)])
    assert metrics["passed_over"] == {"licence": 1}
    assert metrics["ledger"] == {"input": 1, "kept": 1, "rejected": 0, "reasons": {}}
    rows = pq.read_table(tmp_path / "raw/book/documents.parquet").to_pylist()
    assert len(rows) == metrics["records"]["documents"] > 10  # type: ignore[index]
    starts = [json.loads(row["meta"]).get("passage", 0) for row in rows]
    assert starts == sorted(starts)  # the order of reading
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
    assert {row["kind"] for row in rows} == {"qa", "smalltalk", "principle", "scene", "harmless"}
    assert sum(row["kind"] == "qa" for row in rows) == 200
    pairs = pq.read_table(tmp_path / "raw/chat/preferences.parquet").to_pylist()
    assert {row["kind"] for row in pairs} == {"sibling", "invented", "truncated", "principle", "scene", "harmless"}
    for kind in ("principle", "scene"):
        named = {row["principle"] for row in pairs if row["kind"] == kind}
        assert named == {"beneficence", "non_maleficence", "autonomy", "justice"}


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


@pytest.mark.parametrize("locator", ["missing.txt", "nosuch://x/y", "empty"])
def test_a_source_without_text_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locator: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=locator):
        run(Params(), make_paths(tmp_path, "x", locator))


def test_a_source_without_a_usable_record_says_why(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/dangling.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "texts/blank.txt").write_text(" \n")
    (tmp_path / "texts/LICENSE").write_text("free")
    with pytest.raises(ConfigError, match=r"texts: holds no usable record") as caught:
        run(Params(), make_paths(tmp_path, "x", str(tmp_path / "texts")))
    message = str(caught.value)
    assert "dangling_link: 1\n    dangling.txt: the link leads nowhere" in message
    assert "empty: 1\n    blank.txt: no text" in message
    assert "passed over: licence (1)" in message


def write_lines(path: Path, bad: int, total: int) -> None:
    lines = ['{"text": "cut' if i % total < bad else json.dumps({"text": f"Row {i}."}) for i in range(total)]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(("bad", "stops"), [(0, False), (1, False), (300, False), (301, True), (999, True)])
def test_too_many_rejects_stop_the_stage(tmp_path: Path, bad: int, stops: bool) -> None:
    write_lines(tmp_path / "rows.jsonl", bad, 1000)
    paths = make_paths(tmp_path, "x", str(tmp_path / "rows.jsonl"))
    if not stops:
        metrics = run(Params(max_reject_rate=0.3), paths)
        assert metrics["ledger"] == {
            "input": 1000, "kept": 1000 - bad, "rejected": bad, "reasons": {"bad_json": bad} if bad else {},
        }  # fmt: skip
        return
    with pytest.raises(ConfigError) as caught:
        run(Params(max_reject_rate=0.3), paths)
    message = str(caught.value)
    assert f"{bad} of the first 1,000 records" in message
    assert f"bad_json: {bad}\n    rows.jsonl, line 1: Unterminated string" in message
    assert "raise ingest.max_reject_rate" in message
    rejects = pq.read_table(tmp_path / "raw/x/rejects.parquet").to_pylist()
    assert len(rejects) == bad
    assert json.loads(rejects[0]["detail"])["offset"] == "line 1"


def test_reading_stops_at_the_thousandth_record_that_is_too_much(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", 2, 3)
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + "\n{" * 100_000)
    with pytest.raises(ConfigError, match="999 of the first 1,000 records"):
        run(Params(), make_paths(tmp_path, "x", str(tmp_path / "rows.jsonl")))
    assert pq.read_metadata(tmp_path / "raw/x/rejects.parquet").num_rows == 999


def test_an_entry_says_what_the_content_does_not(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("body;note\nA text.;x\nAnother.;y\n")
    entry = {"format": "csv", "columns": {"text": "body"}, "license": "CC0-1.0", "max_records": 1}
    metrics = run(Params(), make_paths(tmp_path, "x", str(tmp_path / "rows.txt"), **entry))
    assert metrics["formats"] == {"csv": 1}
    (row,) = pq.read_table(tmp_path / "raw/x/documents.parquet").to_pylist()
    assert (row["text"], row["license"]) == ("A text.", "CC0-1.0")
    with pytest.raises(ConfigError, match="format: docx: no such reader"):
        run(Params(), make_paths(tmp_path, "y", str(tmp_path / "rows.txt"), format="docx"))


def test_a_dataset_is_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    rows = [f"Row number {i}." for i in range(9)] + [None]
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "saved")
    metrics = run(Params(max_hosted_bytes=60), make_paths(tmp_path, "x", "saved"))
    assert metrics["ledger"]["kept"] == 5  # type: ignore[index]
    metrics = run(Params(), make_paths(tmp_path, "y", "hf:saved"))
    assert metrics["ledger"]["input"] == 10  # type: ignore[index]
    assert metrics["ledger"]["rejected"] == 1  # type: ignore[index]


@pytest.mark.parametrize(
    "wrong", [{"sample": 0}, {"sample": 1.1}, {"max_chats": -1}, {"max_reject_rate": 1.5}, {"surprise": 1}]
)
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
