"""Batches as a pure function of (seed, step): resume needs a step number and nothing else."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.config import require

IGNORE = -100


class Batch(NamedTuple):
    """tokens_BT int64, targets_BT int64 with IGNORE (-100) where nothing is learned."""

    tokens: Tensor
    targets: Tensor


class WindowLoader:
    """Windows of `context` tokens of one flat shard; each epoch visits every window once, in a new order."""

    def __init__(self, tokens: NDArray[np.unsignedinteger], context: int, batch_size: int, seed: int):
        self.tokens, self.context, self.batch_size, self.seed = tokens, context, batch_size, seed
        self.num_windows = (len(tokens) - 1) // context
        require(
            self.num_windows >= 1,
            f"data/tokens holds {len(tokens)} tokens, fewer than one window of pretrain.context={context}: "
            f"add text to ingest.sources or lower pretrain.context",
        )

    def batch(self, step: int) -> Batch:
        """Return the global batch of a step."""
        first = step * self.batch_size
        rows = [self._window(first + row) for row in range(self.batch_size)]
        block = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Batch(block[:, :-1], block[:, 1:])

    def _window(self, position: int) -> NDArray[np.unsignedinteger]:
        epoch, place = divmod(position, self.num_windows)
        start = int(epoch_order(self.num_windows, self.seed, epoch)[place]) * self.context
        return self.tokens[start : start + self.context + 1]


class ConversationLoader:
    """Padded batches of conversations; those of similar length share a batch, to save padding."""

    GROUP = 8  # batches that are sorted by length together

    def __init__(self, rows: Sequence[tuple[list[int], list[int]]], batch_size: int, seed: int, pad_id: int):
        require(len(rows) >= batch_size, f"{len(rows)} conversations are fewer than sft.batch_size={batch_size}")
        self.rows, self.batch_size, self.seed, self.pad_id = rows, batch_size, seed, pad_id
        self.batches_per_epoch = len(rows) // batch_size

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        epoch, place = divmod(step, self.batches_per_epoch)
        chosen = _length_grouped(tuple(len(ids) for ids, _ in self.rows), self.batch_size, self.seed, epoch)[place]
        return pad_batch([self.rows[i] for i in chosen], self.pad_id)


def pad_batch(rows: Sequence[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    """Return (ids, mask) rows right-padded to the longest; a target counts where its token's mask is 1."""
    width = max(len(ids) for ids, _ in rows) - 1
    tokens = torch.full((len(rows), width), pad_id)
    targets = torch.full((len(rows), width), IGNORE)
    for row, (ids, mask) in enumerate(rows):
        n = len(ids) - 1
        tokens[row, :n] = torch.tensor(ids[:-1])
        learned = torch.tensor(ids[1:])
        targets[row, :n] = torch.where(torch.tensor(mask[1:]) == 1, learned, IGNORE)
    return Batch(tokens, targets)


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the permutation of 0..size-1 of one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).permutation(size)


@lru_cache(maxsize=2)
def _length_grouped(lengths: tuple[int, ...], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    order = epoch_order(len(lengths), seed, epoch)
    order = order[: len(order) // batch_size * batch_size]
    span = batch_size * ConversationLoader.GROUP
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        group = sorted((int(i) for i in order[start : start + span]), key=lambda i: (lengths[i], i))
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    mixed = epoch_order(len(batches), seed + 1, epoch)
    return [batches[int(i)] for i in mixed]
