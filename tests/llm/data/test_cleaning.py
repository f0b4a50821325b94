"""Normal form, filters, duplicates and the split."""

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ConfigError
from llm.data.cleaner import Ledger, clean_questions
from llm.data.dedup import NearDuplicateParams, find_exact, find_near, shingle
from llm.data.filters import FilterParams, judge_text, measure_repeated_lines
from llm.data.normalise import normalise_text
from llm.data.schema import Document, Question, hash_share, to_json
from llm.data.split import assign_splits, choose_surplus, find_seen, reading_order


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
    assert measure_repeated_lines("aaaa\nbbbb\naaaa\ncccc") == 4 / 16
    assert measure_repeated_lines("aaaa\naaaa\naaaa") == 0.0  # fewer than four lines say nothing


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


def test_the_split_is_by_hash_and_stays_when_groups_come() -> None:
    groups = [f"package{i}" for i in range(400)]
    splits = assign_splits(groups, 0.2)
    assert 50 < sum(one == "val" for one in splits.values()) < 110
    assert all((splits[g] == "val") == (hash_share("split", g) < 0.2) for g in groups)
    more = assign_splits([*groups, "new"], 0.2)
    assert {g: more[g] for g in groups} == splits


def test_both_sides_hold_documents() -> None:
    for holdout in (1e-9, 1 - 1e-9):
        splits = assign_splits(["a", "b", "c"], holdout, ["a", "b"])
        assert {splits["a"], splits["b"]} == {"train", "val"}
    with pytest.raises(ConfigError, match="one single document"):
        assign_splits(["a", "b"], 0.5, ["a"])


def test_sentences_seen_in_training() -> None:
    texts = ["mills.turn()\n\nTurn the *wheel* once. Then stop."]
    assert find_seen(texts, ["Turn the wheel once.", "Then", "Stop the wheel."]) == {"turn the wheel once"}


def test_surplus_keeps_the_first_and_shares_the_room() -> None:
    documents = [Document(f"d{i}", "x" * size, "s", "", "", "{}", "g") for i, size in enumerate((90, 30, 10))]
    assert choose_surplus(documents, 50, 1.0) == {"d1", "d2"}
    assert choose_surplus(documents, 100, 1.0) == {"d1"}
    groups = [Document(f"d{i}", "x" * 30, "s", "", "", "{}", f"g{i // 3}") for i in range(6)]
    assert choose_surplus(groups, 1000, 0.06) == {"d2", "d5"}  # 60 bytes per group
    assert choose_surplus(groups, 1000, 0.01) == {"d1", "d2", "d4", "d5"}  # every group gives one at least


def test_reading_order_keeps_modules_together() -> None:
    def make(group: str, module: str, name: str) -> Document:
        return Document(f"{group}{name}", "t", "s", "", "", to_json({"module": module, "name": name}), group)

    documents = [make("b", "m.y", "f"), make("a", "m.x", "g"), make("b", "m.x", "f"), make("b", "m.x", "a")]
    ordered = sorted(documents, key=reading_order)
    assert [one.id for one in ordered if one.group == "b"] == ["ba", "bf", "bf"]
    passages = [Document(str(n), "t", "s", "", "", to_json({"file": "f", "offset": n}), "g") for n in (900, 10_000, 0)]
    assert [one.id for one in sorted(passages, key=reading_order)] == ["0", "900", "10000"]


def test_two_editions_do_not_ask_the_same_question_twice() -> None:
    """Two editions of one book cut their passages differently: one question came back among other options."""

    def four(options: str, names: str) -> list[Question]:
        return [Question(name, "g", "s", f"after {name}?", "?", list(options), 0) for name in names]

    ledger = Ledger()
    kept = clean_questions(four("pqrs", "abcd") + four("ptuv", "aefg") + four("wxyz", "hijk"), ledger)
    assert [one.id for one in kept] == ["a", "b", "c", "d", "h", "i", "j", "k"]
    assert {(one.id, one.reason) for one in ledger.rejects} == {(name, "asked_before") for name in "aefg"}
    assert ledger.inputs["questions"] == len(kept) + len(ledger.rejects)
