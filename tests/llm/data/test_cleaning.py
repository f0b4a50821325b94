"""Normal form, filters, duplicates and the split."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.filters.judge import FilterParams, judge_texts
from llm.data.filters.simple import SimpleParams, measure_simple
from llm.data.text.normalise import normalise_text


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
    (verdict,) = judge_texts(pa.array([text], pa.string()), FilterParams())
    assert (verdict[0] if verdict else None) == reason


def test_repeated_lines_by_hand() -> None:
    texts = pa.array(["aaaa\nbbbb\naaaa\ncccc", "aaaa\naaaa\naaaa", " a b\n\na b \na  b\nab\n"])
    rule = measure_simple(texts, SimpleParams())[-1]
    assert rule.name == "repeated_lines"
    assert rule.measured.tolist() == [4 / 16, 0.0, 3 / 12]  # fewer than four lines say nothing
