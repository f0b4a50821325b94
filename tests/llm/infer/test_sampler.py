"""The sampler: truncation rules worked by hand, exact inverse sampling, ties and limits."""

import math

import pytest
import torch

from llm.infer.sampler import choose_tokens, draw_uniforms, truncate

PROBS = [0.1, 0.4, 0.2, 0.3]  # by probability: ids 1, 3, 2, 0
LOGITS = torch.tensor([PROBS]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("top_k", "expected"), [(0, [0, 1, 2, 3]), (1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_exactly_k(top_k, expected):
    assert kept(truncate(LOGITS, top_k, 1.0)) == expected


@pytest.mark.parametrize(
    ("top_p", "expected"),
    # Cumulative by rank: 0.4, 0.7, 0.9, 1.0.  The token that crosses the line is kept.
    [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (0.95, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_shortest_run_that_reaches_p(top_p, expected):
    assert kept(truncate(LOGITS, 0, top_p)) == expected


def test_top_p_counts_what_top_k_left():
    # After top-k 2 the probabilities are 4/7 and 3/7: 0.5 is reached by the first alone.
    # Without renormalisation (0.4 < 0.5) the second would be kept too.
    assert kept(truncate(LOGITS, 2, 0.5)) == [1]
    assert kept(truncate(LOGITS, 0, 0.5)) == [1, 3]


def test_ties_go_to_the_lower_id():
    equal = torch.zeros(1, 4)
    assert kept(truncate(equal, 2, 1.0)) == [0, 1]
    assert kept(truncate(equal, 0, 0.5)) == [0, 1]
    assert choose_tokens(equal, torch.zeros(1), temperature=0.0).tolist() == [0]


def test_off_means_the_same_tensor():
    assert truncate(LOGITS, 0, 1.0) is LOGITS


@pytest.mark.parametrize(
    ("uniform", "expected"),
    # Cumulative by id: 0.1, 0.5, 0.7, 1.0.
    [(0.0, 0), (0.099, 0), (0.101, 1), (0.499, 1), (0.501, 2), (0.699, 2), (0.701, 3), (1 - 2**-53, 3)],
)
def test_choice_inverts_the_cumulative_distribution(uniform, expected):
    assert choose_tokens(LOGITS, torch.tensor([uniform], dtype=torch.float64)).tolist() == [expected]


def test_truncated_tokens_are_never_drawn():
    uniforms = torch.cat([torch.zeros(1, dtype=torch.float64), draw_uniforms([(0, 0)], 2000)[0]])
    tokens = choose_tokens(LOGITS.expand(2001, 4), uniforms, top_p=0.6)
    assert set(tokens.tolist()) == {1, 3}


def test_temperature_reshapes_the_distribution():
    # At temperature 0.5 probabilities are squared: 0.01, 0.16, 0.04, 0.09 over 0.30; cumulative 1/30, 17/30
    below, above = 17 / 30 - 1e-4, 17 / 30 + 1e-4
    tokens = choose_tokens(LOGITS.expand(2, 4), torch.tensor([below, above]).double(), temperature=0.5)
    assert tokens.tolist() == [1, 2]


def test_frequencies_match_probabilities():
    tokens = choose_tokens(LOGITS.expand(20_000, 4), draw_uniforms([(7, 0)], 20_000)[0])
    share = torch.bincount(tokens, minlength=4) / 20_000
    # Four standard errors of the largest share: 4 * sqrt(0.4 * 0.6 / 20000) = 0.014.
    torch.testing.assert_close(share, torch.tensor(PROBS), atol=0.014, rtol=0)


def test_extreme_logits_and_temperatures_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    for temperature in (1e-6, 1.0, 1e6):
        assert choose_tokens(logits, torch.tensor([0.5]).double(), temperature=temperature).item() in (
            0,
            1,
            2,
        )
    assert choose_tokens(logits, torch.tensor([1 - 2**-53], dtype=torch.float64), temperature=1e-6).item() == 0


def test_uniforms_depend_on_both_seeds_only():
    first = draw_uniforms([(1, 0), (1, 1)], 5)
    assert torch.equal(first[1], draw_uniforms([(1, 1)], 9)[0, :5])
    assert not torch.equal(first[0], first[1])
    assert math.isclose(draw_uniforms([(3, 0)], 10_000).mean().item(), 0.5, abs_tol=0.02)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}])
def test_refuses_options_out_of_range(options):
    with pytest.raises(ValueError):
        choose_tokens(LOGITS, torch.zeros(1), **options)
