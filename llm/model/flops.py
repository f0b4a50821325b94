"""Floating-point operations of a training step, and what this machine can reach."""

import time

import torch

from llm.model.config import ModelConfig


def flops_per_token(config: ModelConfig) -> float:
    """Return forward and backward FLOPs per token at full context.

    Source: PaLM, arXiv:2204.02311, appendix B: 6 per matrix weight + 12 L H K T for attention.
    Differs: attention is halved, because it is causal; the unembedding counts, the embedding look-up does not.
    """
    query = config.num_heads * config.head_size
    keys_values = 2 * config.num_kv_heads * config.head_size
    block = config.hidden_size * (2 * query + keys_values + 3 * config.mlp_size)
    weights = config.num_layers * block + config.vocab_size * config.hidden_size
    return 6.0 * weights + 6.0 * config.num_layers * query * config.context


def measure_ceiling(dtype: torch.dtype, repeats: int = 5, device: torch.device | None = None) -> float:
    """Return the best FLOP/s of a square matrix product in `dtype`."""
    on_gpu = device is not None and device.type == "cuda"
    size = 8192 if on_gpu else 1024  # a GPU needs larger ones to be busy
    left = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        left @ left
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
