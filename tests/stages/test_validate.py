"""validate: an untouched corpus passes; each injected fault is named with its figure, bound, examples and remedy."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data.checks.profile import REFERENCE, write_reference
from llm.data.schema import RAW_KINDS, Conversation, Document, Preference, Question, RecordWriter, Reject, write_rows
from stages.plumbing.stage import Paths
from stages.validate import Params, ValidationFailed, run

NUM = 20
SPLITS = {f"package-{i}": "val" if i % 5 == 0 else "train" for i in range(NUM)}
PARAMS = Params(
    min_train={"documents": 10},
    min_val={"questions": 2},
    max_reject_rate={"documents": 0.2},
    min_language_share={"en": 0.5},
)
KINDS = dict(zip(RAW_KINDS, "dcpq", strict=True))
Rows = list[dict[str, Any]]


def make_records(num: int) -> dict[str, list[Any]]:
    """Return `num` records of each kind, each in a group of its own."""
    records: dict[str, list[Any]] = {kind: [] for kind in RAW_KINDS}
    for i in range(num):
        group, talk = f"package-{i}", [{"role": "user", "content": f"What does f{i} do?"}]
        answer = {"role": "assistant", "content": f"It returns {i}."}
        text, meta = f"Function number {i} returns the number {i}.", '{"language": "en", "name": "f"}'
        records["documents"].append(Document(f"d{i}", text, "made", "MIT", "", meta, group))
        records["conversations"].append(Conversation(f"c{i}", group, "made", "qa", [*talk, answer]))
        records["preferences"].append(Preference(f"p{i}", group, "made", "sibling", talk, f"It returns {i}.", "No."))
        options = [f"Returns {i + j}." for j in range(4)]
        records["questions"].append(Question(f"q{i}", group, "made", f"f{i}?", "this?", options, 0))
    return records


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a corpus of which ingest and clean dropped a few records, and make its folder the current one."""
    write_raw(tmp_path, NUM + 2)
    kept = make_records(NUM)
    (tmp_path / "clean").mkdir()
    for kind, record in RAW_KINDS.items():
        write_rows(tmp_path / f"clean/{kind}.parquet", record, kept[kind], SPLITS)
    rejects = [
        Reject(f"{letter}{i}", "made", kind, "too_short", "7 characters")
        for kind, letter in KINDS.items()
        for i in range(NUM, NUM + 2)
    ]
    (tmp_path / "rejects").mkdir()
    write_rows(tmp_path / "rejects/rejects.parquet", Reject, rejects)
    write_reference(tmp_path / REFERENCE, "", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_raw(corpus: Path, num: int) -> None:
    """Write the raw files and the ledger of a source with `num` records of each kind and three rejects."""
    records, writer = make_records(num), RecordWriter(corpus / "raw/made", "made")
    for four in zip(*records.values(), strict=True):
        writer.add(four)
    for line in range(3):
        writer.reject("a.jsonl", line, "bad_json", "Expecting value")
    writer.close()


def validate(corpus: Path, params: Params = PARAMS) -> dict[str, Any]:
    """Run the stage on a corpus."""
    deps = {f"data/{name}": corpus / name for name in ("raw", "clean", "rejects")}
    deps[REFERENCE.as_posix()] = corpus / REFERENCE
    return run(params, Paths("validate", deps, {}, sources=("made",)))


def find_faults(corpus: Path, params: Params = PARAMS) -> dict[str, str]:
    """Return expectation -> the rest of its line of the message with which the stage stops."""
    with pytest.raises(ValidationFailed) as caught:
        validate(corpus, params)
    return dict(line.strip().split(": ", 1) for line in str(caught.value).splitlines()[1:])


def edit(path: Path, change: Callable[[Rows], None]) -> None:
    """Apply a change to the rows of a parquet file."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def edit_documents(corpus: Path, change: Callable[[dict[str, Any]], None], first: int, last: int) -> None:
    """Apply a change to each of the clean documents `first` to `last`."""
    edit(corpus / "clean/documents.parquet", lambda rows: [change(row) for row in rows[first : last + 1]] and None)


def test_an_untouched_corpus_passes(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        metrics = validate(corpus)
    # Great Expectations reports some 300 internal steps at this level.
    assert [record.name for record in caplog.records] == ["stages.validate"]
    assert metrics["failed"] == 0
    assert metrics["passed"] == len(metrics["expectations"]) >= 60
    # Only figures that repeat: nothing dated, no uuid, no path, no text of the corpus.
    assert {key for one in metrics["expectations"].values() for key in one} == {"passed", "observed", "bound"}
    assert metrics["expectations"]["ledger.documents_reject_rate"] == {
        "passed": True,
        "observed": round(2 / 22, 6),
        "bound": "<= 0.2",
    }
    assert metrics["expectations"]["ledger.questions_val"]["observed"] == 4
    assert metrics["expectations"]["ingest.reject_rate"]["observed"] == round(3 / 25, 6)
    assert metrics["reference"] == "none accepted: drift is not judged"
    assert str(corpus) not in json.dumps(metrics)
    assert list((corpus / "reports/validation").rglob("index.html"))
    assert validate(corpus) == metrics


def break_schema(corpus: Path) -> None:
    for kind in ("conversations", "preferences", "questions"):
        path = corpus / f"clean/{kind}.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["source"]), path)


def empty_texts(corpus: Path) -> None:
    edit_documents(corpus, lambda row: row.update(text={"d2": "", "d3": None}.get(row["id"], " \u3000\n")), 2, 4)


def repeat_ids(corpus: Path) -> None:
    def change(rows: Rows) -> None:
        for i in range(3):
            rows[2 * i + 1]["id"] = rows[2 * i]["id"]

    # The same in both, as when a source's ids collide: one that only clean made would be unaccounted for as well.
    edit(corpus / "raw/made/documents.parquet", change)
    edit(corpus / "clean/documents.parquet", change)


def leave_pii(corpus: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row["text"] += f" Ask jane.doe{row['id']}@example.com."

    edit_documents(corpus, change, 4, 6)


def shift_language(corpus: Path) -> None:
    edit_documents(corpus, lambda row: row.update(meta='{"language": "fr"}'), 3, 13)


def leak_split(corpus: Path) -> None:
    def change(rows: Rows) -> None:
        for i in (5, 10, 15):
            rows[i]["split"] = "train"

    edit(corpus / "clean/conversations.parquet", change)


def reject_more(corpus: Path) -> None:
    def keep(rows: Rows) -> None:
        del rows[11:14]

    def reject(rows: Rows) -> None:
        rows[:0] = [{**rows[0], "id": f"d{i}", "reason": "few_letters"} for i in (11, 12, 13)]

    edit(corpus / "clean/documents.parquet", keep)
    edit(corpus / "rejects/rejects.parquet", reject)


def drift_lengths(corpus: Path) -> None:
    """Documents were as they are when the last release was made; since then, half of them have grown."""
    release = validate(corpus)["profile"]
    write_reference(corpus / REFERENCE, "0123456789abcdef", release)
    assert validate(corpus)["expectations"]["drift.length"]["observed"] == 0
    edit_documents(corpus, lambda row: row.update(text=" ".join([row["text"]] * 9)), 8, 17)


FAULTS = {
    "schema": (
        break_schema,
        "schemas.columns",
        "observed 3, allowed 0, e.g. clean/conversations.parquet, clean/preferences.parquet, clean/questions.parquet",
    ),
    "empty": (empty_texts, "documents.text_present", "observed 3, allowed 0, e.g. d2, d3, d4"),
    "duplicate ids": (repeat_ids, "documents.ids_unique", "observed 6, allowed 0, e.g. d0, d2, d4"),
    "PII residue": (leave_pii, "documents.no_email", "observed 3, allowed 0, e.g. d4, d5, d6"),
    "language shift": (
        shift_language,
        "languages.en",
        "observed 0.45375, allowed >= 0.5, e.g. d3 (fr), d4 (fr), d5 (fr)",
    ),
    "split leak": (leak_split, "groups.one_split", "observed 3, allowed 0, e.g. package-5, package-10, package-15"),
    "reject rate": (
        reject_more,
        "ledger.documents_reject_rate",
        "observed 0.227273, allowed <= 0.2, e.g. d11 (few_letters), d12 (few_letters), d13 (few_letters)",
    ),
    "drift": (drift_lengths, "drift.length", "observed 4.604318, allowed <= 0.25, e.g. d8, d9, d10"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_by_its_own_expectation_alone(corpus: Path, name: str) -> None:
    inject, expectation, said = FAULTS[name]
    inject(corpus)
    found = find_faults(corpus)
    assert {expectation: found[expectation].split("; ")[0]} == {expectation: said}
    assert list(found) == [expectation]
    assert len(said.split("e.g. ")[1].split(", ")) == 3
    assert found[expectation].split("; ", 1)[1]  # what to do about it


def test_every_fault_is_named_at_once(corpus: Path) -> None:
    def spoil_documents(rows: Rows) -> None:
        rows[1]["id"] = "d2"
        rows[3]["text"] = "f() is short"
        rows[4]["text"] = "Write to jane.doe@example.com about the function."
        rows[5]["meta"] = "[1]"
        rows.append({**rows[6], "id": "d6-again", "split": "val"})

    def spoil_conversations(rows: Rows) -> None:
        rows[7]["messages"][1]["content"] = " \n"
        rows[8]["messages"] = rows[8]["messages"][:1]

    def spoil_preferences(rows: Rows) -> None:
        rows[9]["chosen"] = rows[9]["rejected"] = "Ask root@localhost.localdomain.org."

    def spoil_questions(rows: Rows) -> None:
        rows[11]["options"][2] = rows[11]["options"][1]
        rows[12]["answer"] = 4

    edit(corpus / "clean/documents.parquet", spoil_documents)
    edit(corpus / "clean/conversations.parquet", spoil_conversations)
    edit(corpus / "clean/preferences.parquet", spoil_preferences)
    edit(corpus / "clean/questions.parquet", spoil_questions)
    params = PARAMS.model_copy(update={"max_reject_rate": {"documents": 0.05}, "min_val": {"questions": 5}})
    found = find_faults(corpus, params)
    assert {name: text.split("; ")[0] for name, text in found.items()} == {
        "documents.length": "observed 1, allowed 0, e.g. d3",
        "documents.meta": "observed 1, allowed 0, e.g. d5",
        "documents.no_copies": "observed 1, allowed 0, e.g. d6-again",
        "documents.no_leaks": "observed 1, allowed 0, e.g. d6-again",
        "documents.ids_unique": "observed 2, allowed 0, e.g. d2",
        "documents.no_email": "observed 1, allowed 0, e.g. d4",
        "groups.one_split": "observed 1, allowed 0, e.g. package-6",
        "texts.text_present": "observed 1, allowed 0, e.g. c7",
        "conversations.assistant_last": "observed 1, allowed 0, e.g. c8",
        "preferences.answers_differ": "observed 1, allowed 0, e.g. p9",
        "texts.no_email": "observed 1, allowed 0, e.g. p9",
        "questions.four_options": "observed 1, allowed 0, e.g. q11",
        "questions.answer_index": "observed 1, allowed 0, e.g. q12",
        "ledger.documents_unaccounted": "observed 3, allowed 0, e.g. d1, d2, d6-again",
        "ledger.documents_reject_rate": "observed 0.090909, allowed <= 0.05, e.g. d20 (too_short), d21 (too_short)",
        "ledger.questions_val": "observed 4, allowed >= 5",
    }
    assert "validate.max_reject_rate.documents" in found["ledger.documents_reject_rate"]
    assert "validate.min_val.questions" in found["ledger.questions_val"]
    assert "jane.doe" not in str(found)  # messages name records, never their text
    summary = json.loads((corpus / "reports/validation/summary.json").read_text())
    assert summary["examples"]["documents.no_email"] == ["d4"]
    assert list((corpus / "reports/validation").rglob("index.html"))


def test_the_ledger_of_ingest_must_balance(corpus: Path) -> None:
    path = corpus / "raw/made/ledger.json"
    ledger = json.loads(path.read_text())
    assert ledger == {"input": NUM + 5, "kept": NUM + 2, "rejected": 3, "reasons": {"bad_json": 3}}
    path.write_text(json.dumps({**ledger, "input": NUM + 6, "reasons": {"bad_json": 2, "bad_row": 1}}))
    found = find_faults(corpus, PARAMS.model_copy(update={"max_input_reject_rate": 0.1}))
    assert {name: text.split("; ")[0].split(", e.g.")[0] for name, text in found.items()} == {
        "ingest.unaccounted": "observed 1, allowed 0",
        "ingest.unlisted": "observed 1, allowed 0",
        "ingest.reject_rate": f"observed {round(3 / 26, 6)}, allowed <= 0.1",
    }
    assert found["ingest.reject_rate"].count("(bad_json)") == 3
    assert "rejects.parquet" in found["ingest.reject_rate"]


def test_a_share_of_residue_and_copies_can_be_allowed(corpus: Path) -> None:
    leave_pii(corpus)
    edit_documents(corpus, lambda row: row.update(text="The same function, twice or more."), 7, 9)
    assert set(find_faults(corpus)) == {"documents.no_email", "documents.no_copies"}
    allowed = PARAMS.model_copy(update={"max_residue": {"email": 0.15}, "max_copies": 0.1})
    found = validate(corpus, allowed)["expectations"]
    assert found["documents.no_email"] == {"passed": True, "observed": 3, "bound": "<= 0.15 of the rows"}
    assert found["documents.no_copies"] == {"passed": True, "observed": 2, "bound": "<= 0.1 of the rows"}


def test_empty_tables_can_be_judged(corpus: Path) -> None:
    write_raw(corpus, 0)
    for kind in RAW_KINDS:
        edit(corpus / f"clean/{kind}.parquet", list.clear)
    edit(corpus / "rejects/rejects.parquet", list.clear)
    assert set(find_faults(corpus, Params(min_val={"questions": 2}, max_input_reject_rate=1.0))) == {
        "ingest.not_empty",
        "ledger.documents_train",
        "ledger.conversations_train",
        "ledger.preferences_train",
        "ledger.questions_val",
    }


def test_a_missing_file_is_named(corpus: Path) -> None:
    (corpus / "rejects/rejects.parquet").unlink()
    (corpus / "raw/made/ledger.json").unlink()
    (corpus / "raw/made/rejects.parquet").unlink()
    found = find_faults(corpus)
    assert list(found) == ["schemas.columns"]
    assert "made/rejects.parquet, rejects/rejects.parquet, made/ledger.json" in found["schemas.columns"]
