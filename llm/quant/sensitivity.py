"""How much each matrix matters: what the next-token distributions lose when it alone is rounded.

The measure is the Kullback-Leibler divergence from the original's distribution, not the change of a text's
log-probability: after alignment a model no longer fits plain text best, so a rounding error may by chance make
a text more probable. The divergence has no such slope; it is zero only where nothing changed.

Shapes: N windows, B of them at a time, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llm.model.folder import from_hf_state, to_hf_state
from llm.model.transformer import Transformer
from llm.progress import track
from llm.quant.blocks import Packed, unpack

BATCH = 4


@torch.inference_mode()
def measure_sensitivity(
    model: Transformer, windows_NT: Tensor, num_bytes: int, packed: Mapping[str, Packed]
) -> dict[str, float]:
    """Return for each matrix what rounding it alone costs, in bits per byte.

    KL = sum over positions of sum_v p(v) (ln p(v) - ln q(v)), p the original's next-token distribution, q that
    with one matrix rounded; divided by ln 2 * num_bytes.

    Args:    windows_NT: token ids; all positions but the last are compared.
             num_bytes: UTF-8 bytes of the tokens that those positions predict.
             packed: the rounded matrices, by Hugging Face name.
    Returns: the extra bits per byte that coding text drawn from the original would need; >= 0 but for rounding.
    """
    state = to_hf_state(model)
    logp = [predict(model, windows_BT) for windows_BT in windows_NT.split(BATCH)]
    with torch.device("meta"):
        changed = Transformer(model.config).eval()
    losses = {}
    for name, matrix in track(list(packed.items()), "matrices rounded alone"):
        rounded = {**state, name: torch.from_numpy(unpack(matrix))}
        changed.load_state_dict(from_hf_state(rounded, model.config), assign=True)
        nats = 0.0
        for windows_BT, logp_BTV in zip(windows_NT.split(BATCH), logp, strict=True):
            gap_BTV = logp_BTV - predict(changed, windows_BT)
            nats += float((logp_BTV.exp() * gap_BTV).sum(dtype=torch.float64))
        losses[name] = nats / (math.log(2) * num_bytes)
    return losses


def predict(model: Transformer, windows_BT: Tensor) -> Tensor:
    """Return the log-probabilities [B, T - 1, V] of every next token."""
    return model.unembed(model(windows_BT[:, :-1])).log_softmax(dim=-1)
