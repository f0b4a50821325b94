"""The compute type of preference learning: fp32 weights, matrix products in bf16 where asked.

Autocast keeps one set of fp32 weights, which generation uses as they are and which are saved as they are.
Scoring and training have large products and gain; generation, whose products have few rows, would pay more for
casting the weights at each step than bf16 saves, and stays in fp32.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compute_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Run matrix products and attention in `dtype`; fp32 is off, to the bit."""
    with warnings.catch_warnings(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        # The per-head norms get bf16 input and fp32 weights here; the unfused path that this takes is exact.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
