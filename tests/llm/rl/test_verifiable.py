"""Rewards by rule: hand-worked values, what must earn nothing, and hostile text in bounded time."""

import time

import pytest
import torch

from llm.config import ConfigError
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.infer.generate import Completion
from llm.rl.verifiable import (
    MAX_PATTERN_CHARS,
    collect_references,
    combine,
    compute_exact_match,
    compute_word_f1,
    is_well_formed,
    make_format_reward,
    make_match_reward,
    normalise_result,
)

HOSTILE = ("a" * 10**6, "a " * 10**5, "#" * 10**6, "1" * 10**6, "," * 10**6 + "1", ". " * 10**5, "\n" * 10**6)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["Return the sum of two numbers. It sorts."], 300)


def answer(tokenizer: Tokenizer, text: str, finish: str = "stop") -> Completion:
    ids = tokenizer.encode(text) + ([tokenizer.im_end_id] if finish == "stop" else [])
    return Completion(ids, [0.0] * len(ids), finish)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (" $1,250.00", "1250"), ("+007", "7"), (".50", "0.5"), ("-0.0", "0"), ("-3.10.", "-3.1"), ("12.", "12"),
        ("12\n13", "12"), ("  Blue  Whale.", "blue whale"), ("$", ""), (".", ""), ("-", "-"), ("1e5", "1e5"),
        ("12345678901234567890123456789.1", "12345678901234567890123456789.1"),
    ],
)  # fmt: skip
def test_results_are_normalised(text, result):
    assert normalise_result(text) == result


def test_the_answer_is_what_follows_the_mark():
    reference = "48 / 2 = 24, and 48 + 24 = 72.\n#### 72"
    assert compute_exact_match("So 72.\n#### 72.0", reference) == 1.0
    assert compute_exact_match("#### $72\nBecause I say so", "72") == 1.0
    for wrong in ("72", "#### 71", "#### 72 or 73", "#### 71\n#### 72", "####", "#### 72%", "", "#### 7 2"):
        assert compute_exact_match(wrong, reference) == 0.0, wrong
    assert compute_exact_match("####", "####") == 0.0  # two empty results are no right answer
    # 2 ** 53 and its successor are one double; they are two answers.
    assert compute_exact_match("#### 9007199254740993", "#### 9007199254740992") == 0.0


def test_word_f1_equals_the_hand_worked_value():
    # common: return, the, sum (3 words); precision 3/4, recall 3/6; F1 = 2 * 3 / (4 + 6).
    assert compute_word_f1("Return the sum, sum!", "Return the sum of two_numbers") == pytest.approx(0.6)
    assert compute_word_f1("RETURN the Sum.", "return, the sum") == 1.0
    assert compute_word_f1("", "Return") == compute_word_f1("Return", "...") == compute_word_f1("no", "yes") == 0.0
    # Negative control: by sets of words, to repeat one word of the reference would be as good as half of it.
    assert compute_word_f1("sum " * 50, "the sum") < 0.05


def test_well_formed_answers():
    assert is_well_formed("It sorts.")
    assert is_well_formed("one two three. one two three!")  # three words may come again
    for wrong in ("", "...", "It sorts", "It sorts the list and it sorts the list.", "a a a a a."):
        assert not is_well_formed(wrong), wrong


def test_format_reward_needs_the_stop_token_and_the_pattern(tokenizer):
    rows = [answer(tokenizer, "It sorts."), answer(tokenizer, "It sorts.", "length"), answer(tokenizer, "Sum 12.")]
    assert make_format_reward(tokenizer)([[1]] * 3, rows).tolist() == [1.0, 0.0, 1.0]
    assert make_format_reward(tokenizer, r"\d+\.$")([[1]] * 3, rows).tolist() == [0.0, 0.0, 1.0]


def test_patterns_are_bounded(tokenizer):
    with pytest.raises(ConfigError, match="at most 500"):
        make_format_reward(tokenizer, "a" * (MAX_PATTERN_CHARS + 1))
    for refused in ("(", "(?=a)", r"(a)\1", "a{100000}", "((a{100}){100}){100}"):
        with pytest.raises(ConfigError, match="RE2"):
            make_format_reward(tokenizer, refused)
    # 2 ** 40 steps for an engine that backtracks.
    start = time.monotonic()
    row = [answer(tokenizer, "a" * 40 + "!")]
    assert make_format_reward(tokenizer, "^(a+)+$")([[1]], row).tolist() == [0.0]
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:2].encode().hex() for text in HOSTILE])
def test_hostile_text_takes_bounded_time(text):
    start = time.monotonic()
    for value in (compute_exact_match(text, "#### 1"), compute_word_f1(text, "a"), float(is_well_formed(text))):
        assert 0.0 <= value <= 1.0
    assert time.monotonic() - start < 5.0


def test_answers_are_compared_with_their_own_reference(tokenizer):
    references = {(5, 6): "Return the sum.", (7,): "It sorts."}
    prompts = [[5, 6], [7], [8], [5, 6]]
    rows = [answer(tokenizer, text) for text in ("Return the sum.", "Return the sum.", "It sorts.", "It")]
    assert make_match_reward(tokenizer, references, compute_word_f1)(prompts, rows).tolist() == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ConfigError, match="no reference answer"):
        make_match_reward(tokenizer, {}, compute_word_f1)


def test_rewards_are_weighed_and_none_computed_in_vain(tokenizer):
    def never(prompts, completions):
        raise AssertionError

    ones, twos = (lambda p, c, v=v: torch.full((len(c),), v) for v in (1.0, 2.0))
    mixed = combine({"ones": ones, "twos": twos, "never": never}, {"ones": 0.5, "twos": 2.0, "never": 0.0})
    assert mixed([[1]] * 2, [answer(tokenizer, "a")] * 2).tolist() == [4.5, 4.5]
    with pytest.raises(ConfigError, match="weights are for one, rewards are two"):
        combine({"two": twos}, {"one": 1.0})
    with pytest.raises(ConfigError, match="nothing is rewarded"):
        combine({"two": twos}, {"two": 0.0})


def test_references_are_the_first_better_answers(tokenizer):
    def row(question, chosen, principle=None):
        return {"prompt": [{"role": "user", "content": question}], "chosen": chosen, "principle": principle}

    found = collect_references(tokenizer, [row("a", "A."), row("a", "Z."), row("b", "B.", "justice"), row("c", "C.")])
    keys = [tuple(render(tokenizer, row(q, "")["prompt"], add_generation_prompt=True)[0]) for q in "ac"]
    assert found == dict(zip(keys, ("A.", "C."), strict=True))
