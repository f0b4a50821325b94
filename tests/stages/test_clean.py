"""The clean stage: every record is kept or rejected once, and nothing held out is near a training text."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llm.config import ConfigError
from llm.data.dedup.minhash import shingle
from llm.data.schema import Conversation, Document, Preference, Question, Records, hash_id
from stages.clean import Params, run
from stages.plumbing.stage import Paths


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the stage keeps what it sorts under .scratch


def make_text(generator: random.Random) -> str:
    words = [f"{a}{b}" for a in ("mill", "stone", "wheel", "river") for b in ("side", "work", "man", "house", "yard")]
    return " ".join(generator.choices(words, k=90)) + "."


def make_records() -> Records:
    generator = random.Random(5)
    texts = [make_text(generator) for _ in range(60)]
    texts[1] = texts[0].upper()
    for i in range(10, 20):  # a word changed at one place
        texts[i] = texts[i + 20].replace(texts[i + 20].split()[7], "bridge", 1)
    texts[2] = "Write to miller@example.org or 10.0.0.7. " + texts[2]
    texts[3] = "short"
    records = Records()
    for i, text in enumerate(texts):
        records.documents.append(Document(f"d{i}", text, "texts", "MIT", "", "{}", f"g{i}"))
        talk = [{"role": "user", "content": f"hello {i // 2}"}, {"role": "assistant", "content": "a\u200bb@c.org"}]
        records.conversations.append(Conversation(f"c{i}", f"g{i}", "texts", "qa", talk))
        records.preferences.append(
            Preference(f"p{i}", f"g{i}", "texts", "given", talk[:1], f"good {i}", "good 0" if i == 0 else "bad")
        )
        sentence = text if i == 2 else f"Right answer {i}."
        options = [sentence, f"Wrong {i}.", f"False {i}.", f"Untrue {i}."]
        records.questions.append(Question(f"q{i}", f"g{i}", "texts", f"What is {i}?", "What is it?", options, 0))
    records.conversations.append(Conversation("c-empty", "g0", "texts", "qa", [{"role": "user", "content": "?"}]))
    records.questions.append(Question("q-same", "g0", "texts", "?", "?", ["a", "a", "b", "c"], 0))
    return records


def clean(tmp_path: Path, params: Params | None = None, name: str = "out", **raw: Records) -> dict[str, Any]:
    for source, records in raw.items():
        records.write(tmp_path / "raw" / source)
    outs = {key: tmp_path / name / key for key in ("data/clean", "data/rejects")}
    return run(params or Params(), Paths("clean", {"data/raw": tmp_path / "raw"}, outs, sources=tuple(raw)))


def read(tmp_path: Path, kind: str, name: str = "out") -> list[dict[str, Any]]:
    folder = "rejects" if kind == "rejects" else "clean"
    return list(pq.read_table(tmp_path / name / "data" / folder / f"{kind}.parquet").to_pylist())


def test_input_is_kept_plus_rejected(tmp_path: Path) -> None:
    raw = make_records()
    metrics = clean(tmp_path, texts=raw)
    rejects = read(tmp_path, "rejects")
    for kind, rows in vars(raw).items():
        kept = read(tmp_path, kind)
        dropped = [one["id"] for one in rejects if one["kind"] == kind]
        assert sorted([one["id"] for one in kept] + dropped) == sorted(one.id for one in rows)
        assert metrics["input"][kind] == metrics["kept"][kind] + sum(metrics["rejected"][kind].values())
        assert {one["split"] for one in kept} == {"train", "val"}
    reasons = {(one["kind"], one["reason"]) for one in rejects}
    assert reasons >= {
        ("documents", "too_short"),
        ("documents", "exact_duplicate"),
        ("documents", "near_duplicate"),
        ("conversations", "no_answer"),
        ("conversations", "exact_duplicate"),
        ("preferences", "same_answers"),
        ("questions", "options_not_distinct"),
    }


def test_near_duplicates_name_what_was_kept_and_none_straddle(tmp_path: Path) -> None:
    clean(tmp_path, Params(holdout=0.4), texts=make_records())
    rows = read(tmp_path, "documents")
    kept = {one["id"] for one in rows}
    near = [one for one in read(tmp_path, "rejects") if one["reason"] == "near_duplicate"]
    assert len(near) == 10
    assert all(json.loads(one["detail"])["kept"] in kept for one in near)
    sets = [(one["split"], set(shingle(one["text"], 3))) for one in rows]
    train = [one for split, one in sets if split == "train"]
    for held in (one for split, one in sets if split == "val"):
        assert max(len(held & other) / len(held | other) for other in train) < 0.5


def test_a_group_is_on_one_side_in_every_file(tmp_path: Path) -> None:
    clean(tmp_path, Params(holdout=0.4), texts=make_records())
    sides: dict[str, set[str]] = {}
    for kind in ("documents", "conversations", "preferences", "questions"):
        for one in read(tmp_path, kind):
            sides.setdefault(one["group"], set()).add(one["split"])
    assert all(len(side) == 1 for side in sides.values())


def test_addresses_are_replaced_everywhere(tmp_path: Path) -> None:
    metrics = clean(tmp_path, texts=make_records())
    assert metrics["placeholders"]["ip"] >= 1
    written = [json.dumps(read(tmp_path, kind)) for kind in ("documents", "conversations", "preferences", "questions")]
    assert not [text for text in written if "@" in text or "10.0.0.7" in text]
    assert any("Write to <EMAIL> or <IP>." in one["text"] for one in read(tmp_path, "documents"))
    assert read(tmp_path, "conversations")[0]["messages"][1]["content"] == "<EMAIL>"


def test_a_held_out_question_whose_answer_was_trained_on_goes_with_its_four(tmp_path: Path) -> None:
    records = make_records()
    params = Params(holdout=0.4)
    clean(tmp_path, params, texts=records)
    held = next(one for one in read(tmp_path, "questions") if one["split"] == "val")
    trained = next(one for one in read(tmp_path, "documents") if one["split"] == "train")
    place = next(i for i, one in enumerate(records.documents) if one.id == trained["id"])
    old = records.documents[place]
    records.documents[place] = Document(
        old.id, f"{old.text} {held['options'][0]}", *(getattr(old, n) for n in old.schema.names[2:])
    )
    twin = {**{k: held[k] for k in ("group", "source", "blanked", "options")}, "id": "twin", "question": "And this?"}
    records.questions.append(Question(**twin, answer=1))
    clean(tmp_path, params, "again", texts=records)
    seen = [one["id"] for one in read(tmp_path, "rejects", "again") if one["reason"] == "seen_in_training"]
    assert sorted(seen) == sorted([held["id"], "twin"])


def test_held_out_text_is_capped_and_the_rest_is_not_trained_on(tmp_path: Path) -> None:
    metrics = clean(tmp_path, Params(holdout=0.4, max_val_bytes=3000), texts=make_records())
    assert 0 < metrics["bytes"]["val"] <= 3000
    assert metrics["rejected"]["documents"]["held_out_surplus"] > 0


def test_the_same_bytes_twice_and_in_hashed_order(tmp_path: Path) -> None:
    for name in ("one", "two"):
        clean(tmp_path, name=name, texts=make_records())
    for file in sorted((tmp_path / "one").rglob("*.parquet")):
        other = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
    ids = [one["id"] for one in read(tmp_path, "documents", "one")]
    assert ids != sorted(ids)


def test_a_source_that_params_no_longer_name_is_not_read(tmp_path: Path) -> None:
    make_records().write(tmp_path / "raw/stale")
    extra = [Document(f"x{i}", make_text(random.Random(i + 99)), "new", "", "", "{}", f"x{i}") for i in range(20)]
    metrics = clean(tmp_path, new=Records(extra))
    assert set(metrics["sources"]) == {"new"}


def test_nothing_left_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clean\.filters"):
        clean(tmp_path, texts=Records([Document("d", "short", "texts", "", "", "{}", "d")]))
    assert not (tmp_path / "out").exists()


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    paths = Paths("clean", {"data/raw": tmp_path / "raw"}, {}, sources=("gone",))
    with pytest.raises(ConfigError, match="gone not ingested yet"):
        run(Params(), paths)


@pytest.mark.parametrize(
    "wrong", [{"holdout": 0}, {"near": {"bands": 300}}, {"filters": {"min_chars": 0}}, {"other": 1}]
)
def test_params_are_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate(wrong)


def test_two_editions_do_not_ask_the_same_question_twice(tmp_path: Path) -> None:
    """Two editions of one book cut their passages differently: one question came back among other options."""

    def four(options: str, names: str) -> list[Question]:
        return [Question(name, "g", "texts", f"after {name}?", "?", list(options), 0) for name in names]

    records = make_records()
    records.questions = four("pqrs", "abcd") + four("ptuv", "aefg") + four("wxyz", "hijk")
    metrics = clean(tmp_path, texts=records)
    assert sorted(one["id"] for one in read(tmp_path, "questions")) == list("abcdhijk")
    dropped = {one["id"] for one in read(tmp_path, "rejects") if one["reason"] == "asked_before"}
    exact = {one["id"] for one in read(tmp_path, "rejects") if one["kind"] == "questions"}
    assert dropped <= exact == set("aefg")
    assert metrics["input"]["questions"] == 12


@pytest.mark.parametrize("named", [10, 30])
def test_an_excluded_document_takes_its_copies_with_it(tmp_path: Path, named: int) -> None:
    """Documents 10 and 30 are near copies: whichever is named, neither stays, nor what was made of its group."""
    records = make_records()
    one = records.documents[named]
    records.documents[named] = replace(one, id=hash_id("named"), group=hash_id("named"))
    records.preferences[named] = replace(records.preferences[named], group=hash_id("named"))
    metrics = clean(tmp_path, Params(exclude_ids=[hash_id("named"), hash_id("unknown")]), texts=records)
    copy = f"d{40 - named}"
    assert not {one["id"] for one in read(tmp_path, "documents")} & {copy, hash_id("named")}
    rejects = {one["id"]: one for one in read(tmp_path, "rejects")}
    assert rejects[hash_id("named")]["reason"] == rejects[f"p{named}"]["reason"] == "excluded"
    assert rejects[copy]["reason"] == "near_duplicate"
    assert json.loads(rejects[copy]["detail"])["kept"] == hash_id("named")
    assert metrics["excluded"] == {"asked": 2, "found": 1, "unknown": [hash_id("unknown")]}


def test_what_holds_a_passage_of_an_evaluation_set_goes(tmp_path: Path) -> None:
    records, held = make_records(), Records()
    secret = records.documents[45].text
    talk = [{"role": "user", "content": secret}, {"role": "assistant", "content": "Well?"}]
    held.conversations.append(Conversation("e0", "e0", "exam", "qa", talk))
    records.write(tmp_path / "raw/texts")
    held.write(tmp_path / "raw/exam")
    outs = {key: tmp_path / "out" / key for key in ("data/clean", "data/rejects")}
    paths = Paths("clean", {"data/raw": tmp_path / "raw"}, outs, sources=("texts",), evaluation_sources=("exam",))
    metrics = run(Params(), paths)
    gone = [one for one in read(tmp_path, "rejects") if one["reason"] == "contaminated"]
    assert [one["id"] for one in gone] == ["d45"]
    found = json.loads(gone[0]["detail"])
    assert (found["id"], found["source"]) == ("e0", "exam")
    assert found["passage"][:40] == secret[:40]
    assert "exam" not in metrics["sources"]


def test_a_small_bucket_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(tmp_path, name="one", texts=make_records())
    monkeypatch.setattr("llm.data.sorting.iter_sorted.__defaults__", (2000,))
    clean(tmp_path, Params(base={"threads": 1}), name="two", texts=make_records())
    for kind in ("documents", "conversations", "preferences", "questions", "rejects"):
        assert read(tmp_path, kind, "one") == read(tmp_path, kind, "two")
