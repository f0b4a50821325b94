"""Decoding as benchmarks time it: two decoders with one interface, their check, and what a step must move.

B rows, T tokens, P positions whose logits are known from the reference, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor

from benchmarks.ceiling import round_digits
from benchmarks.plumbing.float32 import relative_error
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer

# bf16 rounding alone, measured on a CPU: 0.013 at 3 layers, 0.021 at 52; one matrix with its rows moved by one: 1.0
LOGIT_TOLERANCE = 0.05
CHECKED_STEPS = 16


class Decoder(Protocol):
    """What StaticDecoder has: greedy decoding of some rows."""

    logits_BV: Tensor
    tokens_B1: Tensor

    def prefill(self, tokens_BT: Tensor) -> None: ...
    def step(self) -> None: ...
    def rewind(self, used: int) -> None: ...


class OrdinaryDecoder:
    """The cache that grows with every step, eagerly: what fixed shapes and graphs are measured against."""

    def __init__(self, model: Transformer, batch: int, length: int):
        self.model, self.cache = model, model.new_cache(batch, length)

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor) -> None:
        self.cache.used = 0
        self._read(tokens_BT)

    @torch.no_grad()
    def step(self) -> None:
        self._read(self.tokens_B1)

    def rewind(self, used: int) -> None:
        self.cache.used = used

    def _read(self, tokens_BT: Tensor) -> None:
        self.logits_BV = self.model.unembed(self.model(tokens_BT, self.cache)[:, -1])
        self.tokens_B1 = self.logits_BV.argmax(-1, keepdim=True)


def check_decoding(decoder: Decoder, tokens_BT: Tensor, reference_BPV: Tensor) -> dict[str, float | bool]:
    """Return the error of the logits after a prompt, and after each of the last tokens, which are forced on it."""
    prompt = tokens_BT.shape[1] - CHECKED_STEPS
    decoder.prefill(tokens_BT[:, :prompt])
    logits = [decoder.logits_BV.clone()]
    for place in range(prompt, tokens_BT.shape[1]):
        decoder.tokens_B1.copy_(tokens_BT[:, place : place + 1])
        decoder.step()
        logits.append(decoder.logits_BV.clone())
    return check_logits(torch.stack(logits, 1), reference_BPV)


def check_logits(got: Tensor, reference: Tensor) -> dict[str, float | bool]:
    """Return the error, the share of positions with the same most probable token, and whether the error is allowed."""
    error = relative_error([got], [reference])
    agreement = float((got.argmax(-1) == reference.argmax(-1)).float().mean())
    return {
        "logit_error": round_digits(error),
        "same_choice": round_digits(agreement),
        "passed": error <= LOGIT_TOLERANCE,
    }


def repeat_rows(tensor: Tensor, rows: int) -> Tensor:
    """Return `rows` rows, the given ones again and again."""
    return tensor[torch.arange(rows, device=tensor.device) % len(tensor)]


def count_block_weights(config: ModelConfig) -> int:
    """Return the elements of all matrices inside blocks: L D (2 H K + 2 G K + 3 M)."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.num_layers * config.hidden_size * (heads * config.head_size + 3 * config.mlp_size)


def count_prefill_flops(config: ModelConfig, rows: int, length: int) -> float:
    """Return B (2 W T + 2 L H K T^2 + 2 V D): causal attention is half of all pairs, one position is unembedded."""
    attention = config.num_layers * config.num_heads * config.head_size * length**2
    unembedding = config.vocab_size * config.hidden_size
    return 2.0 * rows * (count_block_weights(config) * length + attention + unembedding)


def count_step_bytes(config: ModelConfig, rows: int, positions: float) -> float:
    """Return 2 (W + V D) + 4 L G K B S: bf16 weights once, keys and values of S positions for every row.

    Left out, below a thousandth: norms, the rows' embeddings, activations, the written keys and values.
    """
    weights = count_block_weights(config) + config.vocab_size * config.hidden_size
    cache = config.num_layers * config.num_kv_heads * config.head_size * rows * positions
    return 2.0 * weights + 4.0 * cache
