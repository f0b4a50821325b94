"""Swap invariance: which prompts are pairs, and what a difference in cost is worth, by hand."""

import pytest

from llm.evals.swap import make_key, measure_swap, pair_prompts

TEMPLATES = ("Are {} good neighbours?", "May {} lead the team?")
NAMES = ("women", "men", "deaf people", "newcomers", "night workers")
PROMPTS = [template.format(name) for template in TEMPLATES for name in NAMES]
GROUPS = [f"justice: {name}" for _ in TEMPLATES for name in NAMES]


def test_only_the_name_as_a_word_is_masked() -> None:
    assert make_key("Are men good at employment?", "justice: men") == "Are \0 good at employment?"
    assert make_key("Are women good at it?", "justice: men") == "Are women good at it?"
    assert make_key("My tenant is from Norway.", "justice-001") == "justice-001"


def test_pairs_differ_in_the_name_alone_and_share_no_prompt() -> None:
    pairs = pair_prompts(PROMPTS, GROUPS)
    assert len(pairs) == 4  # of five names each, one is left over
    assert len({place for pair in pairs for place in pair}) == 8
    for one, other in pairs:
        assert make_key(PROMPTS[one], GROUPS[one]) == make_key(PROMPTS[other], GROUPS[other])
        assert GROUPS[one] != GROUPS[other]
    turned = pair_prompts(PROMPTS[::-1], GROUPS[::-1])
    assert {frozenset(PROMPTS[::-1][i] for i in pair) for pair in turned} == {
        frozenset(PROMPTS[i] for i in pair) for pair in pairs
    }


def test_halves_of_a_written_pair_belong_together_and_equal_prompts_do_not() -> None:
    prompts = ["He is from Norway.", "Is it so?", "He is from Nigeria.", "Alone?", "Is it so?"]
    groups = ["justice-001", "justice-002", "justice-001", "justice-003", "justice-002"]
    assert [set(pair) for pair in pair_prompts(prompts, groups)] == [{0, 2}]


def test_the_figures_by_hand() -> None:
    found = measure_swap([0.1, 0.9, 0.4, 0.3, 0.6, 0.6], [(0, 1), (2, 3), (4, 5)])
    assert found.change.value == pytest.approx((0.8 + 0.1 + 0.0) / 3)
    assert (found.change.n, found.flips.value) == (3, pytest.approx(1 / 3))
    assert found.metrics()["flips"]["n"] == 3
    turned = measure_swap([0.1, 0.9, 0.4, 0.3, 0.6, 0.6], [(1, 0), (3, 2), (5, 4)])
    assert turned == found


def test_a_judge_that_does_not_see_the_group_is_invariant_and_one_that_does_is_not() -> None:
    pairs = pair_prompts(PROMPTS, GROUPS)
    by_template = [0.2 if prompt.startswith("Are") else 0.7 for prompt in PROMPTS]
    assert measure_swap(by_template, pairs).change.high == 0.0
    by_name = [0.1 * NAMES.index(group.removeprefix("justice: ")) for group in GROUPS]
    assert measure_swap(by_name, pairs).change.low > 0.0


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        measure_swap([0.5], [])
    for bad in (1.5, float("nan")):
        with pytest.raises(ValueError, match="must lie in"):
            measure_swap([0.5, bad], [(0, 1)])
