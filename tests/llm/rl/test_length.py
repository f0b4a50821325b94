"""Length bias: a known one is found and removed, an honest judge is left alone."""

import numpy as np
import pytest

from llm.rl.length import fit_length_slope, remove_length


def make_answers(bias: float, worth: float = 2.0, prompts: int = 300) -> tuple[np.ndarray, ...]:
    """Two answers per prompt; the better one is 10 tokens longer on average and worth more whatever its length."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(prompts), 2)
    better = np.tile([1.0, 0.0], prompts)
    length = np.round(random.normal(30, 8, 2 * prompts) + 10 * better)
    level = np.repeat(random.normal(0, 5, prompts), 2)  # of the prompt: means nothing
    reward = level + worth * better + bias * length + random.normal(0, 0.3, 2 * prompts)
    return reward, length, group, better


def test_the_slope_by_hand() -> None:
    # Within prompts: lengths -1, 1 and -2, 2; rewards -1, 1 and -3, 3: (1 + 1 + 6 + 6) / (1 + 1 + 4 + 4) = 1.4.
    assert fit_length_slope([0, 2, 10, 16], [1, 3, 5, 9], [7, 7, 8, 8], [0, 0, 0, 0]) == pytest.approx(1.4)
    # The first answer is the better one by 1 and by 3, at 2 and 4 tokens more: 1 reward per token beside quality.
    assert fit_length_slope([2, 1, 16, 13], [3, 1, 9, 5], [7, 7, 8, 8], [1, 0, 1, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("bias", [0.2, -0.05, 0.0])
def test_a_known_bias_is_found_and_removed(bias: float) -> None:
    reward, length, group, better = make_answers(bias)
    slope = fit_length_slope(reward, length, group, better)
    assert slope == pytest.approx(bias, abs=0.01)
    corrected = remove_length(reward, length, slope)
    assert fit_length_slope(corrected, length, group, better) == pytest.approx(0.0, abs=1e-9)
    assert np.mean(corrected[::2] - corrected[1::2]) == pytest.approx(2.0, abs=0.15)  # what quality is worth stays


def test_without_quality_an_honest_judge_is_blamed() -> None:
    """The negative control: better answers are longer here, and a slope that does not know that takes their worth."""
    reward, length, group, better = make_answers(0.0)
    assert fit_length_slope(reward, length, group, np.zeros_like(better)) > 0.03


def test_correction_mends_the_order_of_a_biased_judge() -> None:
    reward, length, group, better = make_answers(-0.4)

    def accuracy(scores: np.ndarray) -> float:
        return float(np.mean(scores[::2] > scores[1::2]))

    assert accuracy(reward) < 0.5
    assert accuracy(remove_length(reward, length, fit_length_slope(reward, length, group, better))) > 0.95


def test_where_length_says_nothing_there_is_no_slope() -> None:
    assert fit_length_slope([1, 2, 3], [5, 5, 5], [0, 0, 1], [0, 0, 0]) == 0.0
    assert fit_length_slope([1, 2], [5, 9], [0, 1], [0, 0]) == 0.0  # one answer per prompt
    assert fit_length_slope([1, 2, 4, 5], [5, 9, 1, 5], [0, 0, 1, 1], [0, 1, 0, 1]) == 0.0  # always 4 more if better


@pytest.mark.parametrize(
    "reward, group, message",
    [([1.0, 2.0], [0], "one length"), ([], [], "one length"), ([1.0, np.nan], [0, 0], "finite")],
)
def test_what_is_no_sample_is_refused(reward: list[float], group: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_length_slope(reward, [1.0] * len(reward), group, [0.0] * len(reward))
