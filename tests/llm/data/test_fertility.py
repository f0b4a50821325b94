"""Scripts of a text, and tokens per byte and word of each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.fertility import count_words, measure_fertility, name_script, split_scripts
from llm.data.tokenizer import Tokenizer, train_tokenizer


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("Grain, 2 kg.", [("latin", "Grain, 2 kg.")]),
        ("1 + 2", [("none", "1 + 2")]),
        ("", [("none", "")]),
        ("The word мельница is mill.", [("latin", "The word"), ("cyrillic", " мельница"), ("latin", " is mill.")]),
        ("(磨坊)とmill", [("han", "(磨坊)"), ("hiragana", "と"), ("latin", "mill")]),
        ("μύλος, é — ﷽", [("greek", "μύλος,"), ("latin", " é — ﷽")]),
    ],
)
def test_scripts_by_hand(text: str, pieces: list[tuple[str, str]]) -> None:
    assert split_scripts(text) == pieces


@given(st.text())
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(piece for _, piece in split_scripts(text)) == text


def test_scripts_of_letters() -> None:
    assert [name_script(char) for char in "aßЖא磨ힿทक𝐀ª"] == [
        "latin", "latin", "cyrillic", "hebrew", "han", "hangul", "thai", "devanagari", "other", "other",
    ]  # fmt: skip


def test_words() -> None:
    assert count_words("don't stop: 2 mills", "latin") == 5
    assert count_words("磨坊，水", "han") == 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["It adds two numbers."] * 20, 300)


def test_rates_by_hand(tokenizer: Tokenizer) -> None:
    """A source that is sampled in part counts with all its bytes; an English word takes fewer tokens than a Russian."""
    sample = [("a", "It adds."), ("a", "It adds."), ("b", "мир")]
    found = measure_fertility(sample, {"a": 160, "b": 60}, tokenizer)
    tokens = len(tokenizer.encode("It adds."))
    assert found["source"]["a"] == {
        "bytes_per_token": round(8 / tokens, 4), "tokens_per_word": round(tokens / 2, 4), "share": round(160 / 220, 6)
    }  # fmt: skip
    assert found["script"]["cyrillic"] == {
        "bytes_per_token": 1.0, "tokens_per_word": 6.0, "share": round(60 / 220, 6)
    }  # fmt: skip
    assert found["script"]["latin"]["share"] == found["source"]["a"]["share"]
    assert list(found["source"]) == ["a", "b"]


def test_nothing_sampled(tokenizer: Tokenizer) -> None:
    assert measure_fertility([], {"a": 100}, tokenizer) == {"source": {}, "script": {}}
