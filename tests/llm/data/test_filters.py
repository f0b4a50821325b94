"""The filters' verdicts: equal to datatrove's, each rule on both sides of its bound, and the same in any batch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.filters.judge import FilterParams, judge_texts
from llm.data.text.words import split_words

GOLDEN = json.loads(Path(__file__).with_name("verdicts.json").read_text(encoding="utf-8"))
SECTIONS = ("gopher_quality", "gopher_repetition", "c4")


def switch_on(*sections: str, **changes: object) -> FilterParams:
    """Return params with these sections alone."""
    given = {"simple": {"enabled": False}} | {name: {"enabled": True, **changes} for name in sections}
    return FilterParams.model_validate(given)


def words_of(texts: list[str]) -> Iterator[list[str]]:
    """Yield the words of each text as strings."""
    words = split_words(pa.array(texts, pa.string()))
    for t, text in enumerate(texts):
        start = words.text_offsets[t]
        inside = slice(words.word_offsets[t], words.word_offsets[t + 1])
        yield [text[a - start : b - start] for a, b in zip(words.starts[inside], words.ends[inside], strict=True)]


@pytest.mark.parametrize("section", SECTIONS)
def test_verdicts_equal_datatroves(section: str) -> None:
    """The table is written by benchmarks/verdicts.py (`make bench NAME=verdicts`), which runs datatrove 0.10."""
    texts = [row["text"] for row in GOLDEN]
    kept = [verdict is None for verdict in judge_texts(pa.array(texts), switch_on(section))]
    differ = [text[:80] for text, one, row in zip(texts, kept, GOLDEN, strict=True) if one != row[section]]
    assert not differ
    assert 20 < sum(kept) < len(kept) - 20  # the table has texts on both sides


def test_words_equal_spacys() -> None:
    """The same table holds the words that datatrove's English tokenizer made of hard cases."""
    rows = [row for row in GOLDEN if "words" in row]
    assert len(rows) > 8
    for words, row in zip(words_of([row["text"] for row in rows]), rows, strict=True):
        assert words == row["words"]


@pytest.mark.parametrize(
    "text, reason, detail",
    [
        ("The mill of the village. " * 5, "gopher_quality.min_words", "25 < 50"),
        ("one two three four five six " * 10, "gopher_quality.min_stop_words", "0.000 < 2"),
        ("the and of " + "a b c d e f g " * 10, "gopher_quality.min_mean_word_chars", "1.068 < 3"),
        ("the and of " + "12 345 6789 1000 " * 15, "gopher_quality.min_alpha_words", "0.048 < 0.8"),
        ("#the #and " * 30, "gopher_quality.max_hash_ratio", "0.500 > 0.1"),
        ("- the mill and the river\n" * 20, "gopher_quality.max_bullet_lines", "1.000 > 0.9"),
        ("the mill and the river runs on...\n" * 9, "gopher_quality.max_ellipsis_ratio", "0.125 > 0.1"),
    ],
)
def test_reasons_name_the_rule_and_the_figures(text: str, reason: str, detail: str) -> None:
    assert judge_texts(pa.array([text.strip()]), switch_on("gopher_quality")) == [(reason, detail)]


def test_repetition_by_hand() -> None:
    lines = "one\ntwo\none\nthree"  # 17 characters; `one` comes twice: 1 of 4 lines, 3 characters
    assert judge_texts(
        pa.array([lines]), switch_on("gopher_repetition", max_duplicate_lines=0.24, max_top_2_gram=9)
    ) == [("gopher_repetition.max_duplicate_lines", "0.250 > 0.24")]
    top = "a b a b a c"  # 11 characters; `a b` comes twice and before `b a`: 2 x 3 characters
    assert judge_texts(pa.array([top]), switch_on("gopher_repetition")) == [
        ("gopher_repetition.max_top_2_gram", f"{6 / 11:.3f} > 0.2")
    ]
    words = [f"word{i}" for i in range(100)]
    repeated = " ".join([*words, *words[10:20]])  # one run of ten, found as two of five: 60 of 699 letters and spaces
    (verdict,) = judge_texts(pa.array([repeated]), switch_on("gopher_repetition", max_duplicate_5_grams=0.05))
    assert verdict == ("gopher_repetition.max_duplicate_5_grams", f"{60 / len(repeated):.3f} > 0.05")


def test_nothing_is_judged_that_is_off() -> None:
    texts = pa.array(["", "x", "word " * 1000])
    assert judge_texts(texts, FilterParams.model_validate({"simple": {"enabled": False}})) == [None] * 3
    assert [one and one[0] for one in judge_texts(texts, FilterParams())] == ["too_short", "too_short", "same_word"]


def test_a_verdict_does_not_depend_on_the_batch() -> None:
    texts = pa.array([row["text"] for row in GOLDEN])
    params = FilterParams.model_validate({name: {"enabled": True} for name in SECTIONS})
    together = judge_texts(texts, params)
    alone = [judge_texts(texts[i : i + 1], params)[0] for i in range(len(texts))]
    assert together == alone
    assert judge_texts(texts[7:19], params) == together[7:19]
    assert judge_texts(texts[:0], params) == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=4))
def test_words_cover_a_text_in_order(texts: list[str]) -> None:
    """Hostile text never crashes; words neither overlap nor hold spaces, and leave out nothing but spaces."""
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    for words, text in zip(words_of(texts), texts, strict=True):
        assert "".join(words) == "".join(text.split())
        assert all(words)
    params = FilterParams.model_validate({name: {"enabled": True} for name in SECTIONS})
    assert len(judge_texts(pa.array(texts, pa.string()), params)) == len(texts)


def test_the_hostile_strings(shared_data: Path) -> None:
    texts = json.loads((shared_data / "naughty-strings" / "blns.json").read_text(encoding="utf-8"))
    params = FilterParams.model_validate({name: {"enabled": True} for name in SECTIONS})
    assert len(judge_texts(pa.array(texts), params)) == len(texts) == 515
    for words, text in zip(words_of(texts), texts, strict=True):
        assert "".join(words) == "".join(text.split())


def test_hashes_tell_words_apart() -> None:
    words = split_words(pa.array(["alpha beta alpha Alpha"]))
    assert len(np.unique(words.hashes)) == 3
    assert words.hashes[0] == words.hashes[2]
