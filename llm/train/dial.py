"""One dial: the shape of a model gives its token budget, batch size, learning rates and steps.

Every law is a power law through one measured point, the default recipe: 256 wide, 700 steps of 4,096 tokens, rates
tuned there (docs/log.md). Nothing here depends on the steps that are really run: a run that is made longer keeps its
batch and its rates, and so stays the same run. N counts the blocks alone, as the laws of batch and rate do, so that
no tokenizer is needed to know it.
"""

import math
from typing import NamedTuple

from llm.model.config import ModelConfig

# the measured point
WIDTH = 256
BATCH_TOKENS = 16 * 256
BUDGET_TOKENS = 700 * BATCH_TOKENS
MUON_LR = 0.015
EMBEDDING_LR = 0.0075
# Not measured there: two thirds of Muon's, with which the rates from 124M to 30B meet the Step Law (a test compares).
ADAMW_LR = 0.010

TOKENS_PER_PARAMETER = 20  # spends compute best: Chinchilla, arXiv:2203.15556
BATCH_EXPONENT = 0.571  # best batch in tokens ~ D^0.571, whatever N: Step Law, arXiv:2503.04715
WARMUP_SHARE = 0.02  # of the steps for the whole budget, not of those that are run: 14 of 700
HORIZON_EXPONENT = -0.32  # best rate ~ D^-0.32 at one batch: arXiv:2409.19913 (AdamW), arXiv:2603.28743 (Muon)


class Settings(NamedTuple):
    """What the dial stands at; rates are peaks, `tokens` is the budget that they are for."""

    lr: float
    embedding_lr: float
    batch_size: int
    steps: int
    warmup_steps: int
    tokens: int


def count_block_parameters(shape: ModelConfig) -> int:
    """Return N: the parameters of the blocks' matrices, without embedding, unembedding and norms."""
    heads = 2 * shape.num_heads + 2 * shape.num_kv_heads
    return shape.num_layers * shape.hidden_size * (heads * shape.head_size + 3 * shape.mlp_size)


def turn_dial(
    shape: ModelConfig, context: int, optimiser: str, batch_size: int | None = None, tokens: int | None = None
) -> Settings:
    """Return the settings that suit a shape.

    Args:    context: tokens per sequence.  optimiser: muon or adamw, of the hidden matrices.
             batch_size: sequences per step, when it is already chosen; the rates follow it.
             tokens: the budget D; default 20 N.
    Returns: rates of three figures; a batch of 2^k sequences unless it was given; enough steps for the budget.
    """
    tokens = tokens or TOKENS_PER_PARAMETER * count_block_parameters(shape)
    if batch_size is None:
        sequences = BATCH_TOKENS * (tokens / BUDGET_TOKENS) ** BATCH_EXPONENT / context
        batch_size = 2 ** max(0, round(math.log2(sequences)))  # 2^k, so that any usual number of ranks divides it
    hidden, embedding = scale_rates(shape.hidden_size, batch_size * context, tokens, optimiser)
    steps = max(1, round(tokens / (batch_size * context)))
    return Settings(hidden, embedding, batch_size, steps, round(WARMUP_SHARE * steps), tokens)


def scale_rates(width: int, batch_tokens: int, tokens: int, optimiser: str) -> tuple[float, float]:
    """Return the peak rates of the hidden matrices and of the rest.

    Width:   a step should change what a matrix does to its input by the same amount at every width, so the update's
             spectral norm stays (arXiv:2310.17813). AdamW's update, entries of about one size, has a norm that grows
             with the width: rate ~ 1/width (muP, arXiv:2203.03466). Muon's is orthogonal, and match_rms_adamw
             multiplies it by 0.2 sqrt(width) (arXiv:2502.16982): rate ~ 1/sqrt(width). The embedding's, with many
             more entries than its width, ~ 1/sqrt(width) (arXiv:2506.15025).
    Batch:   noise averages out: rate ~ sqrt(batch) (Adam: arXiv:2205.10287; assumed for Muon).
    Horizon: longer training wants smaller rates: rate ~ D^-0.32.
    """
    narrowing = WIDTH / width
    common = math.sqrt(batch_tokens / BATCH_TOKENS) * (tokens / BUDGET_TOKENS) ** HORIZON_EXPONENT
    hidden = MUON_LR * math.sqrt(narrowing) if optimiser == "muon" else ADAMW_LR * narrowing
    return _round(hidden * common), _round(EMBEDDING_LR * math.sqrt(narrowing) * common)


def _round(value: float) -> float:
    return float(f"{min(value, 1.0):.3g}")
