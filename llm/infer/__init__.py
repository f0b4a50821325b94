"""Inference in torch: sampling, batched generation with a KV cache, exact log-probabilities."""
