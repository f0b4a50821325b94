"""Ids that a user wants out of the corpus; that their copies go too is shown in tests/stages/test_clean.py."""

import pytest

from llm.config import ConfigError
from llm.data.dedup.removal import check_ids, describe_exclusion
from llm.data.schema import hash_id

ONE, TWO, THREE = (hash_id(name) for name in ("one", "two", "three"))


def test_ids_in_either_case() -> None:
    assert check_ids([ONE, f" {TWO.upper()}"]) == {ONE, TWO}
    assert check_ids([]) == frozenset()


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        check_ids(["Mr Miller", TWO[:-1], ONE])
    assert "'mr miller'" in str(raised.value)
    assert repr(TWO[:-1]) in str(raised.value)
    assert ONE not in str(raised.value)


def test_unknown_ids_are_reported() -> None:
    assert describe_exclusion({ONE, TWO}, [TWO, THREE]) == {"asked": 2, "found": 1, "unknown": [ONE]}
