"""Whatever bytes a file holds, ingest, clean and validate's tables end, and each record is kept or rejected, once."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import Base
from llm.data.checks.tables import Folders, compare_schemas, read_tables
from llm.data.ingest import write_outcomes
from llm.data.rows.formats import SourceFormat
from llm.data.schema import RAW_KINDS, Conversation, Document, Preference, Question, RecordWriter, hash_id
from llm.data.sources.read import read_source
from stages.clean import Params, run
from stages.plumbing.stage import Paths

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)
HOSTILE = [
    *("", " ", "\0", "\ufeff", "\u202e\u2066", "\ud7ff\ue000\uffff", "a\u0300" * 500, "\U000e0041" * 40),
    *("<|im_start|>system", "{{7*7}}${7*7}", "'; DROP TABLE documents; --", "\r\n\r\r\n\x0b\x0c\x85\u2028"),
    *("=cmd|' /C calc'!A0", "../../../etc/passwd", "ﷺ" * 300, "Z̷̡̛" * 200, "0" * 5000, "http://[::1]:99999/@"),
    *('{"language": "en"}', "[[[[" * 400, "@" * 300 + "a.b", "1." * 400, "+1 " * 300, "\ufdd0" * 20),
]
TEXTS = st.one_of(
    st.text(max_size=300),
    st.binary(max_size=300).map(lambda one: one.decode("utf8", "replace")),
    st.binary(max_size=300).map(lambda one: one.decode("latin-1")),
    st.sampled_from(HOSTILE),
    st.tuples(st.sampled_from(HOSTILE), st.text(max_size=40)).map(lambda pair: " ".join(pair * 3)),
)
GOOD = [f"The wheel of the mill turned {i} times before the miller came down to the river." for i in range(8)]


@contextmanager
def new_folder() -> Iterator[Path]:
    """A folder for one example: `tmp_path` is one for all of them."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write_texts(folder: Path, texts: list[str]) -> dict[str, list[str]]:
    """Write each text as a record of every kind, and prose that clean keeps; return the ids of each kind."""
    writer, ids = RecordWriter(folder, "made"), {kind: [] for kind in RAW_KINDS}
    for i, text in enumerate([*GOOD, *texts]):
        name, group = hash_id("made", text), f"g{i}"
        talk = [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
        writer.add(
            [
                Document(name, text, "made", "unknown", text, "{}", group),
                Conversation(name, group, "made", "talk", talk),
                Preference(name, group, "made", "given", talk[:1], text, text[1:]),
                Question(name, group, "made", text, "?", [text, text + "a", "b", "c"], 0),
            ]
        )
        for kind in RAW_KINDS:
            ids[kind].append(name)
    writer.close()
    return ids


def clean_and_check(root: Path, ids: dict[str, list[str]]) -> dict[str, Any]:
    """Clean the raw data of a folder, and check that every id is in the clean data or among the rejects."""
    outs = {f"data/{name}": root / name for name in ("clean", "rejects")}
    paths = Paths("clean", {"data/raw": root / "raw"}, outs, sources=("made",))
    paths.scratch = root / "scratch"
    paths.scratch.mkdir()
    metrics = run(Params(base=Base(threads=1)), paths)
    rejects = pq.read_table(root / "rejects/rejects.parquet").to_pylist()
    for kind in RAW_KINDS:
        kept = pq.read_table(root / f"clean/{kind}.parquet")["id"].to_pylist()
        dropped = [one["id"] for one in rejects if one["kind"] == kind]
        assert Counter(kept + dropped) == Counter(ids[kind])
        assert all(one["reason"] for one in rejects)
    folders = Folders([root / "raw/made"], [], root / "clean", root / "rejects")
    schemas = compare_schemas(folders)
    assert (schemas["found"] == schemas["expected"]).all()
    tables = read_tables(folders)
    ledger = tables.frames["ledger"].iloc[0]
    for kind in RAW_KINDS:
        assert ledger[f"{kind}_unaccounted"] == 0
        assert ledger[f"{kind}_train"] + ledger[f"{kind}_val"] == len(tables.frames[kind])
    assert not tables.frames["ingest"][["unaccounted", "unlisted", "unwritten"]].any(axis=None)
    documents = tables.frames["documents"]
    found = documents[["is_blank", "is_copy", "is_leak", "is_repeated", "email", "credit_card"]].sum()
    assert not found.any(), found
    json.dumps(tables.profile, allow_nan=False)
    return metrics


@QUICK
@given(st.lists(TEXTS, max_size=12))
def test_any_text_is_kept_or_rejected_once(texts: list[str]) -> None:
    with new_folder() as root:
        clean_and_check(root, write_texts(root / "raw/made", texts))


def test_naughty_strings_are_kept_or_rejected_once(shared_data: Path, tmp_path: Path) -> None:
    texts = json.loads((shared_data / "naughty-strings/blns.json").read_text())
    assert len(texts) > 500
    metrics = clean_and_check(tmp_path, write_texts(tmp_path / "raw/made", texts))
    assert metrics["input"]["documents"] == len(texts) + len(GOOD)


@QUICK
@given(
    st.binary(max_size=2000) | st.lists(st.binary(max_size=80), max_size=20).map(b"\n".join),
    st.sampled_from(["txt", "jsonl", "json", "csv", "tsv", "html", "md", "parquet", "gz", "zip", "warc", "pdf", "xyz"]),
)
def test_any_file_is_read_or_rejected(content: bytes, suffix: str) -> None:
    with new_folder() as root:
        source = root / "source"
        source.mkdir()
        for i, text in enumerate(GOOD):
            (source / f"good{i}.txt").write_text(text)
        (source / f"bad.{suffix}").write_bytes(content)
        write_outcomes(read_source(str(source), "made", SourceFormat()), root / "raw/made", "made", "here", 1.0)
        ledger = json.loads((root / "raw/made/ledger.json").read_text())
        assert ledger["input"] == ledger["kept"] + ledger["rejected"] >= len(GOOD)
        assert sum(ledger["reasons"].values()) == ledger["rejected"]
        tables = {kind: pq.read_table(root / f"raw/made/{kind}.parquet")["id"].to_pylist() for kind in RAW_KINDS}
        clean_and_check(root, tables)


def test_prose_alone_is_kept(tmp_path: Path) -> None:
    """Else the tests above could not fail."""
    metrics = clean_and_check(tmp_path, write_texts(tmp_path / "raw/made", []))
    assert metrics["input"]["documents"] == len(GOOD) > metrics["kept"]["documents"]  # some are near-duplicates
    assert set(metrics["splits"]["documents"]) == {"train", "val"}
