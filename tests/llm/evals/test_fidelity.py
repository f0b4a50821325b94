"""Paired figures of a changed model, by hand."""

import math

import pytest

from llm.evals.fidelity import Answers, Items, compare_levels, describe_level, lose_bits

LN2 = math.log(2)
ITEMS = Items(text_bytes=[4, 4], own_bytes=[2, 2], documents=[0, 0, 1, 1], groups=["a", "b"])
ORIGINAL = Answers([[-2 * LN2], [-4 * LN2]], [[-LN2], [-LN2]], [5, 6, 7, 8], [1.0, 0.0])
ROUNDED = Answers([[-3 * LN2], [-5 * LN2]], [[-2 * LN2], [-3 * LN2]], [5, 6, 7, 9], [0.0, 0.0])


def test_losses_by_hand():
    found = describe_level(ROUNDED, ORIGINAL, ITEMS)
    assert found["bits_per_byte"]["value"] == 1.0  # 8 bits of 8 bytes
    assert found["text_loss"] == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 2}  # a bit for each document
    assert found["own_text_loss"]["value"] == 0.75  # 1 + 2 bits of 4 bytes
    assert (found["own_text_loss"]["low"], found["own_text_loss"]["high"]) == (0.5, 1.0)
    assert found["agreement"]["value"] == 0.75
    assert (found["agreement"]["low"], found["agreement"]["high"]) == (
        0.5,
        1.0,
    )  # by document
    assert found["accuracy"]["value"] == 0.0
    assert found["accuracy_change"]["value"] == -0.5


def test_the_sign_says_who_is_worse():
    found = compare_levels(ORIGINAL, ROUNDED, ORIGINAL, ITEMS)
    assert found["text"]["high"] < 0
    assert found["own_text"]["high"] < 0
    assert found["agreement"]["value"] == 0.25
    back = compare_levels(ROUNDED, ORIGINAL, ORIGINAL, ITEMS)
    assert back["own_text"]["value"] == -found["own_text"]["value"]


def test_no_questions_no_accuracy():
    items = Items([4, 4], [2, 2], [0, 0, 1, 1], [])
    found = describe_level(ROUNDED, ORIGINAL, items)
    assert not {"accuracy", "accuracy_change"} & set(found)


def test_pairing_takes_away_what_documents_share():
    hard = [[-100.0 * i] for i in range(30)]
    easier = [[-100.0 * i + 0.01 * LN2] for i in range(30)]
    gained = lose_bits(easier, hard, [1] * 30)
    assert gained.high < 0, "documents differ by thousands of bits, the pairs by a hundredth of one"
    assert gained.value == pytest.approx(-0.01)
