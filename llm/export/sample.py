"""The fixed held-out sample on which every format of the model is measured, and the torch figures for it.

A window is the start of one held-out document: the end-of-text token, then the document's first tokens. All
formats score the same windows (bits per byte) and pick the next token after the same prefixes (agreement),
one step at a time: free-running text diverges after the first near-tie and says nothing about the format.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from llm.config import require
from llm.data.schema import hash_id, iter_rows
from llm.data.tokenizer import Tokenizer
from llm.model.transformer import Transformer

log = logging.getLogger(__name__)

Item = TypeVar("Item")
BATCH = 16


@dataclass(frozen=True)
class Sample:
    """Windows of token ids; the bytes that their scored tokens stand for; prefixes (window, length)."""

    windows: list[list[int]]
    num_bytes: int
    positions: list[tuple[int, int]]

    @property
    def prefixes(self) -> list[list[int]]:
        """Return the token ids before each position, in an order in which neighbours share their start."""
        return [self.windows[window][:length] for window, length in self.positions]


def read_texts(clean: Path, split: str, limit: int, salt: str = "sample") -> list[str]:
    """Return `limit` texts of one split of data/clean, chosen by the hash of their ids with this salt.

    Not the first ones: documents stand in reading order, and those would be of one or two packages.
    """

    def read_split() -> Iterator[tuple[str, str]]:
        for row in iter_rows(clean / "documents.parquet", ["id", "text", "split"]):
            if row["split"] == split:
                yield hash_id(salt, row["id"]), row["text"]

    return [text for _, text in heapq.nsmallest(limit, read_split())]


def draw_sample(
    texts: Sequence[str], tokenizer: Tokenizer, *, context: int, num_windows: int, num_positions: int
) -> Sample:
    """Return the sample of the first texts; any prefix of what `read_texts` gives is fair to all sources.

    Fewer positions than asked for are used with a warning; reports hold their number.
    Raises: ConfigError: the texts hold no token.
    """
    windows: list[list[int]] = []
    for ids in tokenizer.encode_batch(texts[:num_windows]):
        if ids:
            windows.append([tokenizer.eos_id, *ids[: context - 1]])
    sizes = [len(piece) for piece in tokenizer.token_bytes()]
    num_bytes = sum(sizes[token] for window in windows for token in window[1:])
    every = [(w, length) for w, window in enumerate(windows) for length in range(1, len(window))]
    require(bool(every), "data/clean holds no held-out text to measure on: add sources or raise clean.holdout")
    if len(every) < num_positions:
        log.warning("%d held-out positions in %d documents instead of %d", len(every), len(windows), num_positions)
    return Sample(windows, num_bytes, spread(every, num_positions))


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items at even distances, in order; all of them when there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def bits_per_byte(logprobs: Sequence[Sequence[float]], num_bytes: int) -> float:
    """Return the bits that the scored tokens cost per byte of text.

    Args:    logprobs: log p(token | prefix) [nats] of every scored token, per window.
             num_bytes: UTF-8 bytes of all scored tokens.
    Returns: -sum(logprobs) / (ln 2 * num_bytes); summed exactly (fsum), so the order does not matter.
    Raises:  ValueError: no bytes.
    """
    if num_bytes <= 0:
        raise ValueError("bits per byte of no bytes is undefined")
    return -math.fsum(value for window in logprobs for value in window) / (math.log(2) * num_bytes)


def agreement(tokens: Sequence[int], reference: Sequence[int]) -> float:
    """Return the share of positions at which both picked the same token."""
    return sum(a == b for a, b in zip(tokens, reference, strict=True)) / len(reference)


@torch.inference_mode()
def score_torch(model: Transformer, sample: Sample) -> tuple[list[list[float]], list[int]]:
    """Return the original's log-probabilities of each window's tokens and its greedy token at each position.

    Windows are padded on the right: under a causal mask no token sees the padding.
    """
    logprobs: list[list[float]] = [[] for _ in sample.windows]
    greedy: list[list[int]] = [[] for _ in sample.windows]
    order = sorted(range(len(sample.windows)), key=lambda i: len(sample.windows[i]))
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        windows = [torch.tensor(sample.windows[i]) for i in rows]
        tokens_BT = pad_sequence(windows, batch_first=True)
        logits_BTV = model.unembed(model(tokens_BT))
        log_p_BT = logits_BTV[:, :-1].log_softmax(dim=-1).gather(2, tokens_BT[:, 1:, None])[:, :, 0]
        greedy_BT = logits_BTV.argmax(dim=-1)
        for i, row_T, best_T in zip(rows, log_p_BT.tolist(), greedy_BT.tolist(), strict=True):
            logprobs[i] = row_T[: len(sample.windows[i]) - 1]
            greedy[i] = best_T
    return logprobs, [greedy[window][length - 1] for window, length in sample.positions]
