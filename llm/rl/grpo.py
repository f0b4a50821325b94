"""GRPO: an answer is as good as it is better than the other answers to its own prompt; there is no value model.

    A    = (s - mean over the group of s) / (standard deviation over the group + eps)
    loss = -E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)] + kl_coef * mean over tokens of k3(policy, reference)

with s = reward - multiplier * cost (`price_costs`).  From A is taken what length explains of it, and a price for being
long (`price_length`).

Left out: answers are not filtered by advantage, and the reference is never replaced.
Source: DeepSeekMath, arXiv:2402.03300, section 4.1.  Differs: token mean over the batch (see losses.py), multipliers
in place of constants.
"""

from torch import Tensor

from llm.rl.advantages import compute_group_advantages, price_length


def compute_grpo_advantages(signal_B: Tensor, length_B: Tensor, group: int, length_price: float) -> Tensor:
    """Return the advantage of each answer, [B, 1]: the same for all its tokens.

    Args:    signal_B: what is to be maximised; `group` neighbours answer the same prompt.  length_B: tokens.
    Raises:  ValueError: see `compute_group_advantages`.
    """
    shape = (-1, group)
    advantage_PG = compute_group_advantages(signal_B.view(shape))
    return price_length(advantage_PG, length_B.view(shape), length_price).flatten()[:, None]
