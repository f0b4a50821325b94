"""Choosing the next token: temperature, top-k, top-p, and one uniform number per choice.

A choice is a pure function of logits and one uniform number (inverse of the cumulative distribution in
order of token id), so a row's text never depends on which other rows share its batch.

The order is the usual one: logits / temperature, then top-k, then top-p on what is left.

Shape suffixes: B rows, T steps, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor


def draw_uniforms(seeds: list[tuple[int, int]], num_steps: int) -> Tensor:
    """Return uniform numbers in [0, 1), fp64 [B, T]: one row per seed pair, one column per step."""
    rows = [np.random.default_rng(pair).random(num_steps) for pair in seeds]
    return torch.from_numpy(np.stack(rows))


def choose_tokens(
    logits_BV: Tensor, uniform_B: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> Tensor:
    """Return one token per row; temperature 0 takes the most probable (the lowest id on a tie).

    Args:    logits_BV: fp32.  uniform_B: fp64 in [0, 1).  temperature: >= 0.  top_p: in (0, 1]; 1 is off.
             top_k: >= 0; 0 is off.
    Returns: int64 [B].
    Raises:  ValueError: an option is out of range.
    """
    if temperature < 0.0 or not 0.0 < top_p <= 1.0 or top_k < 0:
        raise ValueError(
            f"temperature={temperature}, top_p={top_p}, top_k={top_k}: allowed are temperature >= 0, "
            "0 < top_p <= 1 and top_k >= 0"
        )
    if temperature == 0.0:
        return logits_BV.argmax(dim=-1)
    # Shifted before the division: a tiny temperature then gives -inf and 0, never inf - inf.
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature
    probs_BV = truncate(logits_BV, top_k, top_p).softmax(dim=-1)
    cumulative_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
    # The first id whose cumulative probability exceeds the number: ids of probability 0 are never that.
    target_B1 = uniform_B.to(cumulative_BV)[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)


def truncate(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the logits with every token outside top-k and top-p at -inf.

    Top-k keeps exactly k tokens.  Top-p keeps the shortest run of most probable tokens whose probability
    (renormalised after top-k) reaches top_p: the token that crosses the line is kept.  Ties go to lower ids.

    Args:    logits_BV: fp32.  top_k: 0 or at least the vocabulary is off.  top_p: 1 is off.
    Returns: logits, same shape; at least one token of each row is finite.
    Source:  top-k: Fan et al. 2018, arXiv:1805.04833; top-p: Holtzman et al. 2019, arXiv:1904.09751, eq. 2.
    """
    if (top_k == 0 or top_k >= logits_BV.shape[-1]) and top_p >= 1.0:
        return logits_BV
    sorted_BV, ids_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    if top_k:
        sorted_BV[:, top_k:] = -torch.inf
    if top_p < 1.0:
        probs_BV = sorted_BV.softmax(dim=-1, dtype=torch.float64)
        before_BV = probs_BV.cumsum(dim=-1) - probs_BV
        before_BV[:, 0] = 0.0
        sorted_BV = sorted_BV.masked_fill(before_BV >= top_p, -torch.inf)
    return torch.empty_like(logits_BV).scatter_(-1, ids_BV, sorted_BV)
