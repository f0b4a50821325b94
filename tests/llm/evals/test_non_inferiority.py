"""Non-inferiority by hand: the lower end against the margin, common items alone, and never on too few."""

from typing import Any

import pytest

from llm.evals.non_inferiority import MIN_ITEMS, MIN_SAFETY_ITEMS, Comparison, Margins, compare_releases

N = 400


def make_release(
    n: int = N, wrong: range = range(0), reward: float = 1.0, cost: float = 0.1, refused: range = range(0)
) -> dict[str, Any]:
    """Items of a release that answers all questions rightly but `wrong`, and all harmless prompts but `refused`."""
    prompts: dict[str, dict[str, Any]] = {f"p{i}": {"answer": "", "reward": reward + 0.5 * (i % 2)} for i in range(n)}
    prompts |= {f"c{i}": {"answer": "", "principle": "justice", "cost": cost + 0.1 * (i % 2)} for i in range(100)}
    prompts |= {f"h{i}": {"answer": "", "answered": i not in refused} for i in range(100)}
    questions = {f"q{i}": {"credit": float(i not in wrong), "options": f"o{i}"} for i in range(n)}
    return {"judge": "j", "prompts": prompts, "questions": questions}


def compare(challenger: dict[str, Any], champion: dict[str, Any], **margins: float) -> dict[str, Comparison]:
    return {row.measure: row for row in compare_releases(challenger, champion, Margins(**margins))}


def failed(rows: dict[str, Comparison]) -> list[str]:
    return [measure for measure, row in rows.items() if not row.passed]


def test_the_same_release_is_not_inferior():
    rows = compare(make_release(), make_release())
    assert failed(rows) == []
    assert [row.difference.n for row in rows.values() if row.difference] == [400, 400, 100, 100]


def test_the_lower_end_decides():
    """20 questions lost, 10 won, of 400: d = -0.025, se = sqrt((0.075 - d^2) / 400) = 0.01364, low = d - 1.96 se."""
    ours, theirs = make_release(wrong=range(20)), make_release(wrong=range(20, 30))
    row = compare(ours, theirs)["choice"]
    assert row.difference is not None
    assert row.difference.value == pytest.approx(-0.025)
    assert row.difference.low == pytest.approx(-0.0517, abs=0.003)
    assert (row.challenger, row.champion) == pytest.approx((0.95, 0.975))
    assert failed(compare(ours, theirs)) == ["choice"]  # the value itself is above minus the margin of 0.05
    assert failed(compare(ours, theirs, choice=0.06)) == []
    assert failed(compare(theirs, ours)) == []


def test_each_measure_can_refuse():
    champion = make_release()
    assert failed(compare(make_release(reward=0.79), champion)) == ["reward"]
    assert failed(compare(make_release(reward=0.81), champion)) == []
    assert failed(compare(make_release(cost=0.16), champion)) == ["safety"]
    assert failed(compare(make_release(cost=0.14), champion)) == []
    assert failed(compare(make_release(cost=0.0), champion)) == []  # a lower cost is better
    assert failed(compare(make_release(refused=range(15)), champion)) == ["answered"]


def test_questions_that_share_their_options_widen_the_interval():
    alone, together = make_release(wrong=range(20)), make_release(wrong=range(20))
    for i in range(N):
        together["questions"][f"q{i}"]["options"] = f"o{i // 20}"
    rows = [compare(one, make_release())["choice"] for one in (alone, together)]
    widths = [row.difference.high - row.difference.low for row in rows if row.difference]
    assert widths[1] > 3 * widths[0]


def test_too_few_common_items_are_refused():
    row = compare(make_release(n=MIN_ITEMS - 1), make_release())["choice"]
    assert not row.passed
    assert "399 common items, at least 400 are needed" in str(row)
    assert failed(compare(make_release(n=399), make_release())) == ["choice", "reward"]
    other = make_release()
    other["questions"] = {f"x{key}": item for key, item in other["questions"].items()}
    row = compare(make_release(), other)["choice"]
    assert row.difference is None
    assert not row.passed
    assert "no common item" in str(row)
    few = make_release()
    for i in range(MIN_SAFETY_ITEMS - 1, 100):
        del few["prompts"][f"c{i}"]
    assert failed(compare(few, make_release())) == ["safety"]
