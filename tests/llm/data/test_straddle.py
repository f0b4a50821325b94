"""Texts on both sides of the split."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm.data.dedup.duplicates import exact_keys
from llm.data.dedup.minhash import NearDuplicateParams, sign_texts
from llm.data.dedup.signatures import SignatureStore
from llm.data.dedup.straddle import find_straddling, find_straddling_records
from llm.data.schema import Conversation, Document, Preference, write_rows

PARAMS = NearDuplicateParams()


def passage(name: str, words: int = 120) -> list[str]:
    return [f"{name}{i}" for i in range(words)]


def test_each_training_text_names_the_held_out_one_that_it_is_most_like(tmp_path: Path) -> None:
    mill, barn = passage("mill"), passage("barn")
    texts = pa.array(
        [" ".join(words) for words in (mill, mill[:-9], barn, passage("other"), mill[3:], [*barn, "end"], mill[5:-20])]
        + [" ".join(barn).upper()]
    )
    held_out = np.array([True, True, True, False, False, False, False, False])
    with SignatureStore(tmp_path, PARAMS) as store:
        store.append(sign_texts(texts, PARAMS))
    found, similarity, exact = find_straddling(exact_keys(texts), store, held_out)
    assert found.tolist() == [-1, -1, -1, -1, 0, 2, 1, 2]
    assert exact.tolist() == [False] * 7 + [True]
    assert similarity[5] == pytest.approx(117 / 119, abs=0.04)
    assert find_straddling(exact_keys(texts), store, np.ones(8, dtype=np.bool_))[0].tolist() == [-1] * 8


def write_clean(folder: Path, documents: list[Document], talk: list[Conversation], pairs: list[Preference]) -> Path:
    splits = {"t": "train", "v": "val"}
    folder.mkdir()
    write_rows(folder / "documents.parquet", Document, documents, splits)
    write_rows(folder / "conversations.parquet", Conversation, talk, splits)
    write_rows(folder / "preferences.parquet", Preference, pairs, splits)
    return folder


def test_records_of_every_kind_are_compared(tmp_path: Path) -> None:
    mill, barn = " ".join(passage("mill")), " ".join(passage("barn"))
    documents = [
        Document("d1", mill, "s", "", "", "{}", "v"),
        Document("d2", barn, "s", "", "", "{}", "t"),
        Document("d3", "Yes, it does.", "s", "", "", "{}", "t"),
        Document("d4", "Yes, it does!", "s", "", "", "{}", "v"),
    ]
    talk = [
        Conversation("c1", "t", "s", "qa", [{"role": "user", "content": "?"}, {"role": "assistant", "content": mill}]),
        Conversation("c2", "v", "s", "qa", [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no"}]),
    ]
    pairs = [Preference("p1", "v", "s", "qa", [], "better", barn + " end")]
    found = find_straddling_records(write_clean(tmp_path / "clean", documents, talk, pairs), tmp_path / "s", PARAMS)
    named = {(one.train_kind, one.train_id, one.val_kind, one.val_id, one.exact) for one in found}
    assert named == {
        ("conversations", "c1", "documents", "d1", True),
        ("documents", "d2", "preferences", "p1", False),
    }
    again = find_straddling_records(tmp_path / "clean", tmp_path / "s2", PARAMS, min_words=3)
    assert {one.train_id for one in again} == {"c1", "d2", "d3"}


def test_a_clean_folder_has_none(tmp_path: Path) -> None:
    documents = [
        Document("d1", " ".join(passage("mill")), "s", "", "", "{}", "v"),
        Document("d2", " ".join(passage("barn")), "s", "", "", "{}", "t"),
    ]
    assert find_straddling_records(write_clean(tmp_path / "clean", documents, [], []), tmp_path / "s", PARAMS) == []
