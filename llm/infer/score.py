"""Exact log-probabilities of given tokens, with or without gradients.

Rows are padded on the right: under a causal mask no token sees the padding, so no attention mask is needed
and the fast causal kernel runs.  Only the hidden states in front of a scored token are unembedded.

Shape suffixes: B rows, T scored positions of a row, N scored tokens of all rows, D model, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.model.transformer import Transformer


@dataclass
class TokenScores:
    """What the model says about each scored token; column j of a row is its token `start + j`."""

    logp_BT: Tensor  # log-probability [nats], fp32; 0 outside the mask
    entropy_BT: Tensor  # entropy of the distribution that the token was drawn from [nats]; never has a gradient
    mask_BT: Tensor  # bool


def score(
    model: Transformer, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch_size: int = 64
) -> list[list[float]]:
    """Return the log-probability [nats] of every token of each sequence from its start on.

    Args:    sequences: token ids, each within the model's context.
             starts: index of the first scored token of each, >= 1: a first token has nothing before it.
    Raises:  ValueError: a start outside its sequence, or a sequence longer than the context.
    """
    if len(sequences) != len(starts):
        raise ValueError(f"{len(starts)} starts for {len(sequences)} sequences")
    result: list[list[float]] = [[] for _ in sequences]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            scores = score_tokens(model, [sequences[i] for i in rows], [starts[i] for i in rows])
            for i, logp_T in zip(rows, scores.logp_BT.tolist(), strict=True):
                result[i] = logp_T[: len(sequences[i]) - starts[i]]
    return result


def score_tokens(
    model: Transformer, sequences: Sequence[Sequence[int]], starts: Sequence[int], with_entropy: bool = False
) -> TokenScores:
    """Return the scores of one batch as tensors through which gradients flow.

    Args:    as `score`.  with_entropy: entropy costs one more pass over the logits; without it, zeros.
    Raises:  ValueError: as `score`.
    """
    for sequence, start in zip(sequences, starts, strict=True):
        if not 1 <= start <= len(sequence) <= model.config.context:
            raise ValueError(
                f"start {start} of a sequence of {len(sequence)} tokens: "
                f"1 <= start <= length <= {model.config.context} must hold"
            )
    device = model.embedding.weight.device
    tokens_BT, lengths_B = pad_right(sequences, device)
    starts_B = torch.tensor(list(starts), device=device)
    num_scored = max(1, int((lengths_B - starts_B).max()))
    columns_BT = starts_B[:, None] + torch.arange(num_scored, device=device)
    mask_BT = columns_BT < lengths_B[:, None]
    rows_N, places_N = mask_BT.nonzero(as_tuple=True)
    columns_N = columns_BT[rows_N, places_N]
    hidden_BTD = model(tokens_BT)
    logits_NV = model.unembed(hidden_BTD[rows_N, columns_N - 1])
    zeros_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=device)
    logp_N = -F.cross_entropy(logits_NV, tokens_BT[rows_N, columns_N], reduction="none")
    logp_BT = zeros_BT.index_put((rows_N, places_N), logp_N)
    entropy_BT = zeros_BT
    if with_entropy:
        entropy_BT = zeros_BT.index_put((rows_N, places_N), measure_entropy(logits_NV))
    return TokenScores(logp_BT, entropy_BT, mask_BT)


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sequences as one int64 matrix padded with zeros on the right, and their lengths."""
    lengths_B = torch.tensor([len(sequence) for sequence in sequences])
    tokens_BT = torch.zeros(len(sequences), int(lengths_B.max()), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens_BT[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return tokens_BT.to(device), lengths_B.to(device)


@torch.no_grad()
def measure_entropy(logits_NV: Tensor) -> Tensor:
    """Return the entropy [nats] of each row's distribution.

    H = -sum_v p_v log p_v.

    Args:    logits_NV: fp32, finite.
    Returns: [N], between 0 and ln V.
    Source:  Shannon 1948.
    """
    logp_NV = logits_NV.log_softmax(dim=-1)
    return -(logp_NV.exp() * logp_NV).sum(dim=-1)
