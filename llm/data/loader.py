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
Row = tuple[list[int], list[float]]  # as `llm.data.chat.render` gives it
T = TypeVar("T")


class Batch(NamedTuple):
    """tokens_BT int64, targets_BT int64 with IGNORE (-100) where nothing is learned.

    segments_BT: int64 numbers of the documents of a window, where attention is confined to documents; else None.
    weights_BT: fp32, how much each target counts, 0 where nothing is learned; None where all count the same.
    """

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None = None
    weights: Tensor | None = None

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

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: int, pad_id: int):
        require(len(rows) >= batch_size, f"{len(rows)} conversations are fewer than sft.batch_size={batch_size}")
        self.rows, self.batch_size, self.seed, self.pad_id = rows, batch_size, seed, pad_id
        self.batches_per_epoch = len(rows) // batch_size
        self.lengths = tuple(len(ids) for ids, _ in rows)
        self.tokens_per_step = sum(self.lengths) / len(rows) * batch_size

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return pad_batch([self.rows[i] for i in self.chosen(step)], self.pad_id)

    def chosen(self, step: int) -> list[int]:
        """Return the numbers of the rows of a step."""
        epoch, place = divmod(step, self.batches_per_epoch)
        return _length_grouped(self.lengths, self.batch_size, self.seed, epoch)[place]


class PackedLoader:
    """Batches of rows of one width, filled with whole conversations that do not see one another.

    What is packed together is settled once, by the seed; each epoch visits every row once, in a new order. Positions
    count on through a row: RoPE turns by differences alone, so confined attention is as good as a restart.
    """

    def __init__(self, rows: Sequence[Row], width: int, batch_size: int, seed: int, pad_id: int):
        self.rows, self.width, self.batch_size, self.seed, self.pad_id = rows, width, batch_size, seed, pad_id
        lengths = [len(ids) - 1 for ids, _ in rows]  # the last token is a target only
        self.packs = pack_lengths(lengths, width, seed)
        self.batches_per_epoch = len(self.packs) // batch_size
        require(
            self.batches_per_epoch >= 1,
            f"{len(rows)} conversations fill {len(self.packs)} rows, fewer than sft.batch_size={batch_size}",
        )
        self.tokens_per_step = sum(lengths) / len(self.packs) * batch_size

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        packs = [[self.rows[i] for i in pack] for pack in self._packs(step)]
        return join_rows(packs, self.width, self.pad_id)._replace(segments=self._segments(packs))

    def chosen(self, step: int) -> list[int]:
        """Return the numbers of the conversations of a step."""
        return [i for pack in self._packs(step) for i in pack]

    def _packs(self, step: int) -> list[list[int]]:
        epoch, place = divmod(step, self.batches_per_epoch)
        order = epoch_order(len(self.packs), self.seed, epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [self.packs[int(i)] for i in order]

    def _segments(self, packs: Sequence[Sequence[Row]]) -> Tensor:
        """Return the number of each token's conversation in its row; the padding is one of its own."""
        segments = torch.zeros(len(packs), self.width, dtype=torch.int64)
        for row, pack in zip(segments, packs, strict=True):
            starts = np.cumsum([len(ids) - 1 for ids, _ in pack])
            row[starts[starts < self.width]] = 1
        return segments.cumsum(1)


def pack_lengths(lengths: Sequence[int], width: int, seed: int) -> list[list[int]]:
    """Return the numbers of what shares a row of `width`: best fit, the longest first, equals in seeded order."""
    order = sorted(epoch_order(len(lengths), seed, 0).tolist(), key=lambda i: -lengths[i])
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens -> packs
    for i in order:
        assert 0 < lengths[i] <= width, f"{lengths[i]} tokens in a row of {width}"
        room = next((room for room in range(lengths[i], width + 1) if by_room.get(room)), None)
        if room is None:
            packs.append([])
        place = len(packs) - 1 if room is None else by_room[room].pop()
        packs[place].append(i)
        by_room.setdefault((width if room is None else room) - lengths[i], []).append(place)
    return packs


def pad_batch(rows: Sequence[Row], pad_id: int) -> Batch:
    """Return rows right-padded to the longest."""
    return join_rows([[row] for row in rows], max(len(ids) for ids, _ in rows) - 1, pad_id)


def join_rows(packs: Sequence[Sequence[Row]], width: int, pad_id: int) -> Batch:
    """Return rows of (ids, weights) one after the other, right-padded; a target counts where its weight is not 0."""
    tokens = torch.full((len(packs), width), pad_id)
    targets = torch.full((len(packs), width), IGNORE)
    weights = torch.zeros(len(packs), width)
    for row, pack in enumerate(packs):
        start = 0
        for ids, weights_of in pack:
            place = slice(start, start := start + len(ids) - 1)
            tokens[row, place] = torch.tensor(ids[:-1])
            weights[row, place] = torch.tensor(weights_of[1:], dtype=torch.float32)
            targets[row, place] = torch.where(weights[row, place] > 0, torch.tensor(ids[1:]), IGNORE)
    all_same = bool((weights == (targets != IGNORE)).all())
    return Batch(tokens, targets, None, None if all_same else weights)


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
