"""Losses and divergence estimators of preference learning and policy optimisation.

Pure functions of tensors: nothing here knows models, tokens or files.  All sums run over the positions
that a mask marks as sampled; what the mask leaves out has no effect, not even when it holds NaN or inf.

Shape suffixes: B sequences, T positions, N pairs or answers.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_preference_loss(
    chosen_N: Tensor, rejected_N: Tensor, margin_N: Tensor, tie_N: Tensor, threshold: float = 1.0
) -> Tensor:
    """Return the negative log-likelihood of judgements under Bradley-Terry with margins and ties, averaged.

    With d = chosen - rejected, a judge calls a tie when the answers' difference stays under a threshold t:
    P(win) = sigmoid(d - m), with m the pair's margin;
    P(tie) = 1 - sigmoid(d - t) - sigmoid(-d - t) = (exp(2 t) - 1) sigmoid(d - t) sigmoid(-d - t).

    Args:    chosen_N, rejected_N: rewards [logits], fp32.  tie_N: bool, neither answer is the better one.
             margin_N: how much better the chosen answer must be [logits], >= 0; not used of ties.
             threshold: t [logits], > 0.
    Returns: scalar loss [nats per pair]; a pair without margin costs ln 2 at d = 0, a tie least at d = 0.
    Raises:  ValueError: shapes differ, there is no pair, or a margin is negative.
    Source:  Bradley and Terry 1952; ties: Rao and Kupper, JASA 62(317), 1967, with log(theta) = t; margins: Llama 2,
             arXiv:2307.09288, eq. 2.  Differs: a win without a margin is not held to exceed t, so that it is
             plain Bradley-Terry, InstructGPT, arXiv:2203.02155, eq. 1.
    """
    if not chosen_N.shape == rejected_N.shape == margin_N.shape == tie_N.shape or chosen_N.ndim != 1:
        raise ValueError(
            f"four vectors of one length: {chosen_N.shape}, {rejected_N.shape}, {margin_N.shape}, {tie_N.shape}"
        )
    if chosen_N.numel() == 0:
        raise ValueError("a preference loss needs at least one pair")
    if bool((margin_N < 0).any()) or threshold <= 0:
        raise ValueError("margins must not be negative, and the threshold of a tie must be positive")
    d_N = chosen_N - rejected_N
    win_N = F.logsigmoid(d_N - margin_N)
    tied_N = math.log(math.expm1(2 * threshold)) + F.logsigmoid(d_N - threshold) + F.logsigmoid(-d_N - threshold)
    return -torch.where(tie_N, tied_N, win_N).mean()


def compute_cost_loss(logit_N: Tensor, is_bad_N: Tensor) -> Tensor:
    """Return the binary cross-entropy of a cost head, whose sigmoid is the probability of a bad answer.

    loss = mean(-is_bad * log sigmoid(logit) - (1 - is_bad) * log sigmoid(-logit)).

    Args:    logit_N: log-odds that the answer is bad, fp32.  is_bad_N: 1.0 for bad answers, 0.0 for good.
    Returns: scalar loss [nats per answer]; ln 2 at logit 0.
    Raises:  ValueError: shapes differ, or there is no answer.
    Source:  cost models of Safe RLHF, arXiv:2310.12773, section 3.1.  Differs: the sign alone is learned;
             there is no preference term, since our answers are written as good or bad, not ranked.
    """
    if logit_N.shape != is_bad_N.shape or logit_N.numel() == 0:
        raise ValueError(f"one label per answer and at least one answer: {logit_N.shape}, {is_bad_N.shape}")
    return F.binary_cross_entropy_with_logits(logit_N, is_bad_N)


def compute_policy_loss(
    logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, clip_eps: float
) -> Tensor:
    """Return the clipped policy loss, averaged over all sampled tokens of the batch.

    ratio = exp(logp - old_logp);  loss = -mean(min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A)).

    Args:    logp_BT, old_logp_BT: log-probabilities [nats], fp32; the second is a constant.
             advantage_BT: fp32, constant; broadcasts, so that [B, 1] gives one value per sequence.
             mask_BT: 1 where the token was sampled.  clip_eps: in (0, 1).
    Returns: scalar loss; 0.0 when the mask is empty.
    Raises:  ValueError: shapes differ, or clip_eps out of range.
    Source:  PPO, arXiv:1707.06347, eq. 7; with one advantage per answer, GRPO, arXiv:2402.03300, eq. 3.
             Differs from GRPO: token mean over the batch instead of a mean per answer, which would make a
             token of a long answer count less (DAPO, arXiv:2503.14476, section 3.3).
    """
    if logp_BT.shape != old_logp_BT.shape or logp_BT.shape != mask_BT.shape:
        raise ValueError(f"shapes differ: {logp_BT.shape}, {old_logp_BT.shape}, {mask_BT.shape}")
    if not 0.0 < clip_eps < 1.0:
        raise ValueError(f"clip_eps is {clip_eps}, allowed is 0 < clip_eps < 1")
    selected_BT = mask_BT.bool()
    ratio_BT = torch.exp((logp_BT - old_logp_BT.detach()).masked_fill(~selected_BT, 0.0))
    advantage_BT = advantage_BT.detach().expand_as(ratio_BT)
    plain_BT = ratio_BT * advantage_BT
    clipped_BT = ratio_BT.clamp(1.0 - clip_eps, 1.0 + clip_eps) * advantage_BT
    return -average_tokens(torch.minimum(plain_BT, clipped_BT), selected_BT)


def estimate_kl(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """Return the k3 estimate of KL(policy || reference) for each sampled token.

    With x = ref_logp - logp: k3 = exp(x) - 1 - x, never negative, and 0 where the two agree.  Its
    expectation under the policy is the divergence, because E[exp(x)] = 1; its variance is far below that
    of -x, the plain estimate.

    Args:    logp_BT, ref_logp_BT: log-probabilities [nats] of tokens sampled from the policy, fp32.
    Returns: estimates [nats], same shape.
    Raises:  ValueError: shapes differ.
    Source:  Schulman 2020, "Approximating KL divergence", k3; per token in GRPO, arXiv:2402.03300, eq. 4.
    """
    if logp_BT.shape != ref_logp_BT.shape:
        raise ValueError(f"shapes differ: {logp_BT.shape}, {ref_logp_BT.shape}")
    x_BT = ref_logp_BT - logp_BT
    return torch.expm1(x_BT) - x_BT


def estimate_sequence_kl(logp_BT: Tensor, ref_logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the k3 estimate of KL(policy || reference) of each whole answer: the sum over its tokens.

    Args:    logp_BT, ref_logp_BT: log-probabilities [nats] of tokens sampled from the policy, fp32.
             mask_BT: 1 where the token was sampled.
    Returns: estimates [nats per answer], [B]; 0.0 for an answer without tokens.
    Raises:  ValueError: shapes differ.
    Source:  chain rule of the divergence over `estimate_kl`.
    """
    if mask_BT.shape != logp_BT.shape:
        raise ValueError(f"shapes differ: {logp_BT.shape}, {mask_BT.shape}")
    return estimate_kl(logp_BT, ref_logp_BT).masked_fill(~mask_BT.bool(), 0.0).sum(dim=1)


def average_tokens(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean of the values that the mask selects, as a scalar; 0.0 when it selects none."""
    selected_BT = mask_BT.bool()
    total = value_BT.masked_fill(~selected_BT, 0.0).sum()
    return total / selected_BT.sum().clamp(min=1)
