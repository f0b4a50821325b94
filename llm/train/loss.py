"""Next-token cross-entropy that never holds all logits."""

from typing import Any

import torch
from torch import Tensor

from llm.data.loader import IGNORE

CHUNK = 512  # positions whose logits exist at one time


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(h W^T)[target], chunk by chunk; the gradient is taken while a chunk's logits exist."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int, counts_N: Tensor | None
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND)
        # As large as the unembedding in fp32, so only where that learns: below adapters it is frozen.
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden_ND), chunk):
            hidden, targets = hidden_ND[start : start + chunk], targets_N[start : start + chunk]
            keep = (targets != IGNORE).unsqueeze(1)
            index = targets.clamp(min=0).unsqueeze(1)
            log_probs = torch.log_softmax((hidden @ weight_VD.T).float(), dim=-1)
            counts = keep if counts_N is None else counts_N[start : start + chunk].unsqueeze(1)
            total -= (log_probs.gather(1, index) * counts).sum()
            grad = log_probs.exp_()
            grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad = (grad if counts_N is None else grad * counts).to(hidden.dtype)
            # What does not count is left out of the narrow matrices, not of the wide one.
            grad_hidden[start : start + chunk] = (grad @ weight_VD) * keep
            if grad_weight is not None:
                grad_weight += grad.T @ (hidden * keep)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        if grad_weight is not None:
            grad_weight = grad_weight * scale.to(grad_weight.dtype)
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight, None, None, None


def next_token_loss(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    chunk: int = CHUNK,
    count: Tensor | None = None,
    weights_BT: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy in nats over the targets that count: sum(w nll) / sum(w).

    Args:    hidden_BTD: final hidden states.  weight_VD: unembedding.
             targets_BT: next token of each position, IGNORE (-100) where nothing is learned.
             chunk: positions whose logits exist at one time.
             count: divisor in place of `count_targets`, for a part of a larger batch.
             weights_BT: fp32 w, at least 0, of each target; 0 where nothing is learned.  None: 1 where something is.
    Returns: fp32 scalar; 0.0 when no target counts.
    Source:  softmax cross-entropy; the gradient is (softmax - onehot), taken in the forward pass.
    """
    count = count_targets(targets_BT, weights_BT) if count is None else count
    # Divided before the backward pass, so that bf16 gradients stay in range whatever the batch size.
    counts = None if weights_BT is None else weights_BT.flatten()
    total = _LinearCrossEntropy.apply(hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), chunk, counts)
    return total / count  # type: ignore[no-any-return]


def count_targets(targets_BT: Tensor, weights_BT: Tensor | None = None) -> Tensor:
    """Return how many targets count, at least 1, or the sum of their weights."""
    if weights_BT is not None:
        return weights_BT.sum().clamp(min=torch.finfo(weights_BT.dtype).tiny)
    return (targets_BT != IGNORE).sum().clamp(min=1)
