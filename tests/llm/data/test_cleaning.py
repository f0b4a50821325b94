"""Normal form, filters, duplicates and the split."""

import random
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.dedup import NearDuplicateParams, find_exact, find_near
from llm.data.filters import FilterParams, judge_text
from llm.data.minhash import shingle
from llm.data.normalise import normalise_text
from llm.data.simple import SimpleParams, measure_simple


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("cafe\u0301", "café"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("zero\u200bwidth\ufeff and\u00ad soft", "zerowidth and soft"),
        ("bell\x07 nul\x00 escape\x1b", "bell nul escape"),
        ("no\u00a0break", "no break"),
        ("left\u202eright", "leftright"),
        ("a  \n\n\n\n b\t\n", "a\n\n b"),
        ("\U0001f468\u200d\U0001f469 می\u200cروم", "\U0001f468\u200d\U0001f469 می\u200cروم"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_normal_form(raw: str, clean: str) -> None:
    assert normalise_text(raw) == clean


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_normal_form_is_stable_and_nfc(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "\r" not in once


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Grain is ground between two stones that a wheel of the mill turns.", None),
        (
            "磨坊把谷物磨成面粉。水轮转动石磨，磨石碾碎谷物，面粉落入袋中。人们等待着新鲜的面粉，然后回家做面包给孩子们吃。",
            None,
        ),
        ("short", "too_short"),
        ("x " * 60_000, "too_long"),
        ("one two supercalifragilisticexpialidocious three", "too_few_words"),
        ("0123 4567 8901 2345 6789 0123 4567 8901 2345 6789 ab", "few_letters"),
        ("aGVsbG8gd29ybGQ" * 10 + " " + " ".join(["QmFzZTY0" * 8] * 6), "long_words"),
        ("buffalo " * 30, "same_word"),
        ("\n".join(["The same line again and again here."] * 3 + ["Another line."] * 2), "repeated_lines"),
    ],
)
def test_filters(text: str, reason: str | None) -> None:
    verdict = judge_text(text, FilterParams())
    assert (verdict[0] if verdict else None) == reason


def test_repeated_lines_by_hand() -> None:
    texts = pa.array(["aaaa\nbbbb\naaaa\ncccc", "aaaa\naaaa\naaaa", " a b\n\na b \na  b\nab\n"])
    rule = measure_simple(texts, SimpleParams())[-1]
    assert rule.name == "repeated_lines"
    assert rule.measured.tolist() == [4 / 16, 0.0, 3 / 12]  # fewer than four lines say nothing


def test_exact_duplicates_ignore_case_and_punctuation() -> None:
    assert find_exact(["Hello, mill!", "other", "hello mill", "", "...", ""]) == [None, None, 0, None, None, 3]


def jaccard(one: str, other: str) -> float:
    a, b = set(shingle(one, 3)), set(shingle(other, 3))
    return len(a & b) / len(a | b)


def test_near_duplicates_against_the_exact_similarity() -> None:
    """Every pair is judged as its exact Jaccard similarity says, outside of the estimate's own error."""
    generator = random.Random(3)
    words = [f"word{i}" for i in range(3000)]
    texts = []
    for changes in (0, 1, 2, 4, 12, 30, 60):
        base = generator.choices(words, k=120)
        copy = list(base)
        for place in generator.sample(range(120), changes):
            copy[place] = generator.choice(words)
        texts += [" ".join(base), " ".join(copy)]
    params = NearDuplicateParams()
    found = find_near(texts, params)
    for i in range(0, len(texts), 2):
        exact = jaccard(texts[i], texts[i + 1])
        if exact > params.threshold + 0.12:
            assert found[i + 1] is not None
            assert found[i + 1][0] == i
            assert found[i + 1][1] == pytest.approx(exact, abs=0.12)  # three deviations at 128 hashes
        if exact < params.threshold - 0.12:
            assert found[i + 1] is None
    assert [one for one in found[::2] if one] == []


def test_each_reject_is_like_a_kept_text() -> None:
    base = " ".join(f"word{i}" for i in range(200))
    found = find_near(
        [base, base + " end", base + " end of it", "quite another text, of its own"], NearDuplicateParams()
    )
    assert [one and one[0] for one in found] == [None, 0, 0, None]


def test_more_bands_than_hashes_is_refused() -> None:
    with pytest.raises(ValueError, match="bands"):
        NearDuplicateParams(num_perm=16, bands=17)
