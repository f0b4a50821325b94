"""Token shards: all documents of a split in one flat file without padding, each followed by the end-of-text token.

uint16, or uint32 when the vocabulary needs it; memory-mapped by the loader. The index keeps where each document
begins, so that attention can be confined to documents (`Shard.segments`). Texts are encoded in batches bounded in
number and size, so memory does not grow with the corpus.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llm.data.tokenizer import Tokenizer

T = TypeVar("T")
BATCH = 1024  # texts
BATCH_CHARS = 2_000_000  # whichever comes first
# No token goes on over the end of a line before a letter or digit (SPLIT_PATTERN), so pieces encode as the whole does.
_CUT = re.compile(r"\n(?=[^\W_])")


@dataclass(frozen=True)
class Shard:
    """One split: `tokens` is memory-mapped, `offsets` the start of each document and the end of the last."""

    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    ids: NDArray[np.bytes_]  # of each document

    def documents(self, start: int, stop: int) -> list[str]:
        """Return the ids of the documents that `tokens[start:stop]` holds, in their order."""
        first, last = np.searchsorted(self.offsets, [start, stop - 1], side="right")
        return [one.decode() for one in self.ids[first - 1 : last]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def segments(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return for each token of `tokens[start:stop]` the number of its document, the window's first being 0.

        Two tokens may attend to each other when their numbers are equal. The end-of-text token is its document's.
        """
        assert 0 <= start < stop <= len(self.tokens), f"window {start}:{stop} of {len(self.tokens)} tokens"
        documents = np.searchsorted(self.offsets, np.arange(start, stop), side="right")
        first: NDArray[np.int64] = np.unique(documents, return_inverse=True)[1].astype(np.int64)
        return first

    def starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the places in `tokens[start:stop]` at which a document begins, 0 included: a cut one begins there."""
        return np.flatnonzero(np.diff(self.segments(start, stop), prepend=-1)).astype(np.int64)


def write_shard(folder: Path, split: str, documents: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> dict[str, int]:
    """Write a split's (id, text) as `.bin`, `_index.npy`, `_ids.npy` and its entry of meta.json; return its counts."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(tokenizer)
    offsets, total, num_bytes = array("q", [0]), 0, 0
    ids_written: list[bytes] = []

    def texts() -> Iterator[str]:
        for one, text in documents:
            ids_written.append(one.encode())
            yield text

    with (folder / f"{split}.bin").open("wb") as stream:
        for batch in batch_items(cut_texts(texts(), BATCH_CHARS), lambda piece: len(piece[0])):
            num_bytes += sum(len(piece.encode()) for piece, _ in batch)
            for ids, (_, last) in zip(tokenizer.encode_batch([piece for piece, _ in batch]), batch, strict=True):
                row = [*ids, tokenizer.eos_id] if last else ids
                stream.write(np.array(row, dtype=dtype).tobytes())
                total += len(row)
                if last:
                    offsets.append(total)
    np.save(folder / f"{split}_index.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / f"{split}_ids.npy", np.array(ids_written, dtype=np.bytes_))
    counts = {"documents": len(offsets) - 1, "tokens": total, "bytes": num_bytes}
    write_meta(folder, tokenizer, split, counts)
    return counts


def open_shard(folder: Path, split: str) -> Shard:
    """Return a split, memory-mapped."""
    meta = json.loads((folder / "meta.json").read_text())
    ids = np.load(folder / f"{split}_ids.npy")
    return Shard(map_numbers(folder / f"{split}.bin", meta["dtype"]), np.load(folder / f"{split}_index.npy"), ids)


def token_dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    """Return the smallest type that holds every id."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def map_numbers(path: Path, dtype: str) -> NDArray[Any]:
    """Return a file's numbers; an empty file cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


def write_meta(folder: Path, tokenizer: Tokenizer, name: str, entry: Mapping[str, Any]) -> None:
    """Add an entry to meta.json, and what holds for all."""
    path = folder / "meta.json"
    meta = json.loads(path.read_text()) if path.exists() else {}
    dtype = np.dtype(token_dtype(tokenizer)).name
    meta |= {"dtype": dtype, "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, name: entry}
    path.write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


def cut_texts(texts: Iterable[str], limit: int) -> Iterator[tuple[str, bool]]:
    """Yield the texts in pieces that encode as the whole does, and whether a piece is its text's last."""
    for text in texts:
        start = 0
        while len(text) - start > limit and (cut := _CUT.search(text, start + limit)):
            yield text[start : cut.end()], False
            start = cut.end()
        yield text[start:], True


def batch_items(items: Iterable[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Yield the items in lists of at most BATCH, each of which ends when its sizes reach BATCH_CHARS."""
    batch: list[T] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += size(item)
        if len(batch) >= BATCH or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
