"""Length bias of a reward: how much a token more is worth in itself, and the reward without it.

Longer answers are often better ones, so that a plain correlation of reward and length blames an honest judge. The slope
is therefore taken within prompts, and beside what is known of the answers' quality; what is left for length is bias.
Pairs in which an answer is worse because it was cut short are to be left out: there length is quality.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def fit_length_slope(
    reward: npt.ArrayLike, length: npt.ArrayLike, group: npt.ArrayLike, better: npt.ArrayLike
) -> float:
    """Return the least-squares slope of reward on length within prompts, at equal quality.

    The b of  reward = a_prompt + q better + b length + noise:  group means are taken out of all three columns, then
    quality out of length, and b is what the rest of length explains.

    Args:    reward: N.  length: N tokens.  group: N, the same for answers to one prompt.
             better: N, 1.0 for an answer that is known to be the better one, else 0.0; all 0.0 where nothing is known.
    Returns: b, reward per token; 0.0 when length tells nothing that prompt and quality do not.
    Raises:  ValueError: not four vectors of one length, empty, or not finite.
    Source:  Frisch and Waugh 1933 (partialling out); the within estimator of panel data.
    """
    columns = [np.asarray(one, dtype=np.float64) for one in (reward, length, better)]
    _, group_N = np.unique(np.asarray(group), return_inverse=True)
    if group_N.ndim != 1 or not group_N.size or any(one.shape != group_N.shape for one in columns):
        raise ValueError(f"need vectors of one length, got {[one.shape for one in columns]} and {group_N.shape}")
    if not all(np.isfinite(one).all() for one in columns):
        raise ValueError("rewards, lengths and labels must be finite")
    reward_N, length_N, better_N = (_remove_means(one, group_N) for one in columns)
    if better_N.any():
        length_N = length_N - better_N * (length_N @ better_N) / (better_N @ better_N)
    left = float(length_N @ length_N)
    # Below this, rounding is all that is left of lengths.
    if left <= 1e-12 * float(columns[1] @ columns[1]):
        return 0.0
    return float(length_N @ reward_N) / left


def remove_length(reward: npt.ArrayLike, length: npt.ArrayLike, slope: float) -> Floats:
    """Return the reward without what it pays for length; differences within a prompt are what it is good for."""
    return np.asarray(reward, dtype=np.float64) - slope * np.asarray(length, dtype=np.float64)


def _remove_means(values_N: Floats, group_N: npt.NDArray[np.int_]) -> Floats:
    means_G = np.bincount(group_N, weights=values_N) / np.bincount(group_N)
    centred_N: Floats = values_N - means_G[group_N]
    return centred_N
