"""Ids that a user wants out of the corpus."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm.config import ConfigError
from llm.data.dedup import exact_keys, find_duplicates
from llm.data.minhash import NearDuplicateParams, sign_texts
from llm.data.removal import describe_exclusion, load_excluded, put_first
from llm.data.schema import hash_id
from llm.data.signatures import SignatureStore

ONE, TWO, THREE = (hash_id(name) for name in ("one", "two", "three"))


def test_ids_and_files_of_ids(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text(f"# asked for on Monday\n{TWO}  # a letter\n\n{THREE.upper()}\r\n", "utf-8-sig")
    assert load_excluded([ONE, "gone.txt"], tmp_path) == {ONE, TWO, THREE}
    assert load_excluded([], tmp_path) == frozenset()


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text(f"{ONE}\nMr Miller\n{TWO[:-1]}\n")
    with pytest.raises(ConfigError) as raised:
        load_excluded(["gone.txt", "nowhere.txt", ONE + "0"], tmp_path)
    for fault in ("gone.txt, line 2: 'Mr Miller'", f"line 3: '{TWO[:-1]}'", "'nowhere.txt' is neither", ONE + "0"):
        assert fault in str(raised.value)


def test_unknown_ids_are_reported() -> None:
    assert describe_exclusion({ONE, TWO}, [TWO, THREE]) == {"asked": 2, "found": 1, "unknown": [ONE]}


def test_copies_of_an_excluded_text_go_with_it(tmp_path: Path) -> None:
    """Left out before dedup, the excluded text would have been replaced by its own copy."""
    words = [f"word{i}" for i in range(200)]
    texts = pa.array(["another text", " ".join(words).upper(), " ".join([*words, "end"]), " ".join(words)])
    params = NearDuplicateParams()
    with SignatureStore(tmp_path, params) as store:
        store.append(sign_texts(texts, params))
    excluded = np.array([False, False, False, True])
    order = put_first(np.arange(4), excluded)
    assert order.tolist() == [3, 0, 1, 2]
    kept_by = find_duplicates(exact_keys(texts), store, order).kept_by
    assert kept_by.tolist() == [-1, 3, 3, -1]
    assert excluded[kept_by].tolist()[1:3] == [True, True]
