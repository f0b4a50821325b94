"""validate: an untouched corpus passes; each injected fault is named with its figure, bound, examples and remedy."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data.pii import replace_pii
from llm.data.schema import Conversation, Document, Preference, Question, Records, Reject, write_rows
from stages.plumbing.stage import Paths
from stages.validate import EMAIL, Params, ValidationFailed, run

NUM = 20
SPLITS = {f"package-{i}": "val" if i % 5 == 0 else "train" for i in range(NUM)}
PARAMS = Params(min_train={"documents": 10}, min_val={"questions": 2}, max_reject_rate={"documents": 0.2})


def make_records(num: int) -> Records:
    """Return `num` records of each kind, each in a group of its own."""
    records = Records()
    for i in range(num):
        group, talk = f"package-{i}", [{"role": "user", "content": f"What does f{i} do?"}]
        answer = {"role": "assistant", "content": f"It returns {i}."}
        text = f"Function number {i} returns the number {i}."
        records.documents.append(Document(f"d{i}", text, "made", "MIT", "", "{}", group))
        records.conversations.append(Conversation(f"c{i}", group, "made", "qa", [*talk, answer]))
        records.preferences.append(Preference(f"p{i}", group, "made", "sibling", talk, f"It returns {i}.", "No."))
        options = [f"Returns {i + j}." for j in range(4)]
        records.questions.append(Question(f"q{i}", group, "made", f"f{i}?", "this?", options, 0))
    return records


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a corpus of which clean dropped two documents, and make its folder the current one."""
    make_records(NUM + 2).write(tmp_path / "raw/made")
    kept, clean = make_records(NUM), tmp_path / "clean"
    clean.mkdir()
    for kind, record in (("documents", Document), ("conversations", Conversation)):
        write_rows(clean / f"{kind}.parquet", record, getattr(kept, kind), SPLITS)
    for kind, record in (("preferences", Preference), ("questions", Question)):
        write_rows(clean / f"{kind}.parquet", record, getattr(kept, kind), SPLITS)
    kinds = {"documents": "d", "conversations": "c", "preferences": "p", "questions": "q"}
    rejects = [
        Reject(f"{letter}{i}", "made", kind, "too_short", "7 characters")
        for kind, letter in kinds.items()
        for i in range(NUM, NUM + 2)
    ]
    (tmp_path / "rejects").mkdir()
    write_rows(tmp_path / "rejects/rejects.parquet", Reject, rejects)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validate(corpus: Path, params: Params = PARAMS) -> dict[str, Any]:
    """Run the stage on a corpus."""
    deps = {f"data/{name}": corpus / name for name in ("raw", "clean", "rejects")}
    return run(params, Paths("validate", deps, {}, sources=("made",)))


def edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Apply a change to the rows of a parquet file."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_an_untouched_corpus_passes(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        metrics = validate(corpus)
    # Great Expectations reports some 300 internal steps at this level.
    assert [record.name for record in caplog.records] == ["stages.validate"]
    assert metrics["failed"] == 0
    assert metrics["passed"] == len(metrics["expectations"]) >= 40
    # Only figures that repeat: nothing dated, no uuid, no path, no text of the corpus.
    assert {key for one in metrics["expectations"].values() for key in one} == {"passed", "observed", "bound"}
    assert metrics["expectations"]["ledger.documents_reject_rate"] == {
        "passed": True,
        "observed": round(2 / 22, 6),
        "bound": "<= 0.2",
    }
    assert metrics["expectations"]["ledger.questions_val"]["observed"] == 4
    assert str(corpus) not in json.dumps(metrics)
    assert list((corpus / "reports/validation").rglob("index.html"))


def test_every_fault_is_named_at_once(corpus: Path) -> None:
    def spoil_documents(rows: list[dict[str, Any]]) -> None:
        rows[1]["id"] = "d2"
        rows[3]["text"] = None
        rows[4]["text"] = "Write to jane.doe@example.com about the function."
        rows.append({**rows[6], "id": "d6-again", "split": "val"})

    def spoil_conversations(rows: list[dict[str, Any]]) -> None:
        rows[7]["messages"][1]["content"] = " \n"
        rows[8]["messages"] = rows[8]["messages"][:1]

    def spoil_preferences(rows: list[dict[str, Any]]) -> None:
        rows[9]["chosen"] = rows[9]["rejected"] = "Ask root@localhost.localdomain.org."

    def spoil_questions(rows: list[dict[str, Any]]) -> None:
        rows[11]["options"][2] = rows[11]["options"][1]
        rows[12]["answer"] = 4

    edit(corpus / "clean/documents.parquet", spoil_documents)
    edit(corpus / "clean/conversations.parquet", spoil_conversations)
    edit(corpus / "clean/preferences.parquet", spoil_preferences)
    edit(corpus / "clean/questions.parquet", spoil_questions)
    params = PARAMS.model_copy(update={"max_reject_rate": {"documents": 0.05}, "min_val": {"questions": 5}})
    with pytest.raises(ValidationFailed) as caught:
        validate(corpus, params)
    found = dict(line.strip().split(": ", 1) for line in str(caught.value).splitlines()[1:])
    assert {name: text.split("; ")[0] for name, text in found.items()} == {
        "documents.ids_unique": "observed 2, allowed 0, e.g. d2",
        "documents.length": "observed 1, allowed 0, e.g. d3",
        "documents.text_present": "observed 1, allowed 0, e.g. d3",
        "documents.no_email": "observed 1, allowed 0, e.g. d4",
        "groups.one_split": "observed 1, allowed 0, e.g. package-6",
        "texts.text_present": "observed 1, allowed 0, e.g. c7",
        "conversations.assistant_last": "observed 1, allowed 0, e.g. c8",
        "preferences.answers_differ": "observed 1, allowed 0, e.g. p9",
        "texts.no_email": "observed 2, allowed 0, e.g. p9",
        "questions.four_options": "observed 1, allowed 0, e.g. q11",
        "questions.answer_index": "observed 1, allowed 0, e.g. q12",
        "ledger.documents_unaccounted": "observed -1, allowed 0",
        "ledger.documents_reject_rate": "observed 0.090909, allowed <= 0.05, e.g. d20 (too_short), d21 (too_short)",
        "ledger.questions_val": "observed 4, allowed >= 5",
    }
    assert "validate.max_reject_rate.documents" in found["ledger.documents_reject_rate"]
    assert "validate.min_val.questions" in found["ledger.questions_val"]
    assert "jane.doe" not in str(caught.value)  # messages name records, never their text
    summary = json.loads((corpus / "reports/validation/summary.json").read_text())
    assert summary["examples"]["documents.no_email"] == ["d4"]
    assert list((corpus / "reports/validation").rglob("index.html"))


def test_empty_tables_can_be_judged(corpus: Path) -> None:
    make_records(0).write(corpus / "raw/made")
    for kind in ("documents", "conversations", "preferences", "questions"):
        edit(corpus / f"clean/{kind}.parquet", list.clear)
    edit(corpus / "rejects/rejects.parquet", list.clear)
    with pytest.raises(ValidationFailed, match=r"2 of \d+ .*\n.*documents_train: observed 0.*\n.*questions_val"):
        validate(corpus)


def test_a_table_of_another_shape_is_named(corpus: Path) -> None:
    table = pq.read_table(corpus / "clean/questions.parquet")
    pq.write_table(table.drop_columns(["blanked"]), corpus / "clean/questions.parquet")
    (corpus / "rejects/rejects.parquet").unlink()
    with pytest.raises(ValidationFailed, match=r"clean/questions\.parquet, rejects/rejects\.parquet"):
        validate(corpus)


def test_what_clean_replaces_is_what_is_searched() -> None:
    for address in ("a@b.org", "jane.doe+x@mail.example.com", "(root@localhost.localdomain)", "x\nme@a-b.co\n"):
        assert re.search(EMAIL, address)
        assert not re.search(EMAIL, replace_pii(address)[0])
    for other in ("a @ b.org", "@property.setter", "matrix@other.T", "user@host", "x@a-.org"):
        assert not re.search(EMAIL, replace_pii(other)[0])
