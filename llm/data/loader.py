"""Batches as a pure function of (seed, step): resume needs a step number and nothing else."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.config import require

IGNORE = -100
T = TypeVar("T")


class Batch(NamedTuple):
    """tokens_BT int64, targets_BT int64 with IGNORE (-100) where nothing is learned.

    segments_BT: int64 numbers of the documents of a window, where attention is confined to documents; else None.
    """

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None = None

    def split(self, rows: int) -> Iterator["Batch"]:
        """Yield the batch in parts of at most `rows` rows."""
        for start in range(0, len(self.tokens), rows):
            yield Batch(*(None if part is None else part[start : start + rows] for part in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; from pinned memory the host does not wait."""
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in self))  # type: ignore[arg-type]

    def pin(self) -> "Batch":
        """Return the batch in pinned memory, from which a GPU copies by itself."""
        return Batch(*(None if part is None else part.pin_memory() for part in self))  # type: ignore[arg-type]


def prefetch(batch_of: Callable[[int], T], first: int, last: int) -> Iterator[tuple[int, T]]:
    """Yield (step, batch); the next batch is read while the caller computes on this one."""
    with ThreadPoolExecutor(1, "loader") as pool:
        coming = pool.submit(batch_of, first) if first < last else None
        for step in range(first, last):
            assert coming is not None
            batch = coming.result()
            coming = pool.submit(batch_of, step + 1) if step + 1 < last else None
            yield step, batch


class WindowLoader:
    """Windows of `context` tokens of one flat shard; each epoch visits every window once, in a new order.

    `segments_of(start, stop)` numbers the documents of a window (`Shard.segments`), to confine attention to them.
    """

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        context: int,
        batch_size: int,
        seed: int,
        segments_of: Callable[[int, int], NDArray[np.int64]] | None = None,
    ):
        self.tokens, self.context, self.batch_size, self.seed = tokens, context, batch_size, seed
        self.segments_of = segments_of
        self.num_windows = (len(tokens) - 1) // context
        require(
            self.num_windows >= 1,
            f"data/tokens holds {len(tokens)} tokens, fewer than one window of pretrain.context={context}: "
            f"add text to ingest.sources or lower pretrain.context",
        )

    def batch(self, step: int) -> Batch:
        """Return the global batch of a step."""
        spans = self.spans(step)
        block = torch.from_numpy(np.stack([self.tokens[start : stop + 1] for start, stop in spans]).astype(np.int64))
        segments = None
        if self.segments_of is not None:
            segments = torch.from_numpy(np.stack([self.segments_of(*span) for span in spans]))
        return Batch(block[:, :-1], block[:, 1:], segments)

    def spans(self, step: int) -> list[tuple[int, int]]:
        """Return where in the shard the windows of a step begin and end; each learns one token more."""
        starts = [self._start(step * self.batch_size + row) for row in range(self.batch_size)]
        return [(start, start + self.context) for start in starts]

    def _start(self, position: int) -> int:
        epoch, place = divmod(position, self.num_windows)
        return int(epoch_order(self.num_windows, self.seed, epoch)[place]) * self.context


class ConversationLoader:
    """Padded batches of conversations; those of similar length share a batch, to save padding."""

    GROUP = 8  # batches that are sorted by length together

    def __init__(self, rows: Sequence[tuple[list[int], list[int]]], batch_size: int, seed: int, pad_id: int):
        require(len(rows) >= batch_size, f"{len(rows)} conversations are fewer than sft.batch_size={batch_size}")
        self.rows, self.batch_size, self.seed, self.pad_id = rows, batch_size, seed, pad_id
        self.batches_per_epoch = len(rows) // batch_size
        self.lengths = tuple(len(ids) for ids, _ in rows)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return pad_batch([self.rows[i] for i in self.chosen(step)], self.pad_id)

    def chosen(self, step: int) -> list[int]:
        """Return the numbers of the rows of a step."""
        epoch, place = divmod(step, self.batches_per_epoch)
        return _length_grouped(self.lengths, self.batch_size, self.seed, epoch)[place]


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
