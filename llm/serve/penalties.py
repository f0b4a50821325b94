"""What changes logits before a token is chosen: penalties, biases, and the floor of min-p.

Shape suffixes: V vocabulary.
"""

import math

import torch
from torch import Tensor

from llm.serve.backend import Sampling


def adjust(logits_V: Tensor, in_prompt_V: Tensor, counts_V: Tensor, sampling: Sampling) -> Tensor:
    """Return logits with penalties, biases and min-p applied, in this order.

    repetition r:  l / r where l > 0, else l * r, for every token of the prompt or the answer so far.
    frequency f and presence p:  l - count * f - (count > 0) * p, over the answer so far.
    logit_bias b:  l + b.
    min_p m:  -inf where softmax(l / temperature) is below m times its largest value; the greedy choice is not touched.

    Args:    logits_V: fp32.  in_prompt_V: bool.  counts_V: how often each token stands in the answer so far, fp32.
    Returns: logits, a new tensor where anything changed.
    Source:  frequency, presence, bias: OpenAI's API reference; repetition: CTRL, arXiv:1909.05858, section 4.1, in
             transformers' form for negative logits; min-p: arXiv:2407.01082.
    """
    if sampling.repetition_penalty != 1.0:
        seen_V = in_prompt_V | (counts_V > 0)
        scaled_V = torch.where(
            logits_V > 0, logits_V / sampling.repetition_penalty, logits_V * sampling.repetition_penalty
        )
        logits_V = torch.where(seen_V, scaled_V, logits_V)
    if sampling.frequency_penalty or sampling.presence_penalty:
        logits_V = logits_V - counts_V * sampling.frequency_penalty - (counts_V > 0) * sampling.presence_penalty
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        logits_V = logits_V.index_add(0, torch.tensor(ids), torch.tensor(biases))
    if sampling.min_p and sampling.temperature:
        floor = logits_V.max() + sampling.temperature * math.log(sampling.min_p)
        logits_V = logits_V.masked_fill(logits_V < floor, -torch.inf)
    return logits_V
