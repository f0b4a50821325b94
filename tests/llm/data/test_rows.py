"""Rows of JSONL and parquet become records, and bad ones are named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.config import ConfigError
from llm.data.rows import RowReader
from llm.data.schema import Records
from llm.data.sources import is_hosted, read_files, read_hosted, read_principles


def read(tmp_path: Path, *rows: Any, field: str = "") -> Records:
    (tmp_path / "rows.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    return read_files(str(tmp_path), "mine", field)[0]


def test_documents_conversations_and_preferences(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    records = read(
        tmp_path,
        {"text": "A document.", "url": "https://example.org/a"},
        {"messages": talk},
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 2},
        {"chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": "No."}]},
        {"question": "How many?", "answer": "Three."},
    )
    assert [one.text for one in records.documents] == ["A document.", "How many?\n\nThree."]
    assert records.documents[0].url == "https://example.org/a"
    assert [one.messages[-1]["content"] for one in records.conversations] == ["Hello.", "Three."]
    assert [(p.prompt[0]["content"], p.chosen, p.rejected, p.margin) for p in records.preferences] == [
        ("2+2?", "4", "5", 2.0),
        ("hi", "Hello.", "No.", None),
    ]


def test_a_field_can_be_named(tmp_path: Path) -> None:
    records = read(tmp_path, {"context": "Named text.", "text": "other"}, field="context")
    assert [one.text for one in records.documents] == ["Named text."]
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: no field 'context'; there are: body"):
        read(tmp_path, {"body": "x"}, field="context")


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"text": "cut', "not valid JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"text": 7}', "field 'text' is int"),
        ('{"label": 1}', "no text found among the fields label"),
        ('{"messages": []}', "expected a list of messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "expected a list of messages"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:2: .*{problem}"):
        read_files(str(tmp_path), "mine")


def test_parquet_and_a_damaged_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["One text.", "Two texts."]}), tmp_path / "rows.parquet")
    records, _ = read_files(str(tmp_path / "rows.parquet"), "mine")
    assert [one.text for one in records.documents] == ["One text.", "Two texts."]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ConfigError, match=r"broken\.parquet: not a readable parquet file"):
        read_files(str(tmp_path), "mine")


def test_only_empty_rows_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no text"):
        read(tmp_path, {"text": "  "})


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    records = read(tmp_path, {"text": "half a pair: \ud800 and on"})
    records.write(tmp_path / "out")
    assert records.documents[0].text == "half a pair: ? and on"


def test_hosted_datasets_stream_and_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_text("".join(f'{{"text": "Row number {i}."}}\n' for i in range(100)))
    records = read_hosted(f"hf:{tmp_path}/set", "mine", max_bytes=60)
    assert [one.text for one in records.documents] == [f"Row number {i}." for i in range(5)]
    assert all(str(tmp_path) not in one.meta for one in records.documents)


@pytest.mark.parametrize(
    "locator, hosted",
    [("owner/name", True), ("owner/name@config", True), ("hf:x", True), ("./texts", False), ("a/b/c", False)],
)
def test_what_is_a_datasets_name(locator: str, hosted: bool) -> None:
    assert is_hosted(locator) is hosted


def test_a_mistyped_path_is_not_looked_up_on_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    assert not is_hosted("texts/bok")
    assert not is_hosted("owner/book.txt")


def test_principles_must_be_complete(tmp_path: Path) -> None:
    row = {"id": "a", "principle": "justice", "prompt": "p", "good": "g", "bad": "b"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "principle": "luck"}))
    with pytest.raises(ConfigError, match=r"x\.jsonl:2: principle 'luck' is not one of beneficence"):
        read_principles(tmp_path)


def test_long_rows_are_cut_into_passages() -> None:
    reader = RowReader("mine")
    reader.add_row("x:1", {"text": "\n\n".join(f"Paragraph {i}. " + "words " * 40 for i in range(200))}, "x")
    assert len(reader.records.documents) > 5
    assert json.loads(reader.records.documents[1].meta)["offset"] > 0
