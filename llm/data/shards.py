"""Token shards: all documents of a split in one flat file, each followed by the end-of-text token.

uint16, or uint32 when the vocabulary needs it; memory-mapped by the loader.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm.data.tokenizer import Tokenizer

BATCH = 1024


@dataclass(frozen=True)
class Shard:
    """One split: `tokens` is memory-mapped, `offsets` the start of each document and the end of the last."""

    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]


def write_shard(folder: Path, split: str, texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Write `<split>.bin`, `<split>_index.npy` and the split's entry of meta.json; return its counts."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    offsets, num_bytes = [0], 0
    with (folder / f"{split}.bin").open("wb") as stream:
        for batch in _batched(texts, BATCH):
            num_bytes += sum(len(text.encode()) for text in batch)
            rows = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(batch)]
            offsets += (offsets[-1] + np.cumsum([len(row) for row in rows])).tolist()
            stream.write(np.concatenate([np.array(row, dtype=dtype) for row in rows]).tobytes())
    np.save(folder / f"{split}_index.npy", np.array(offsets, dtype=np.int64))
    counts = {"documents": len(offsets) - 1, "tokens": offsets[-1], "bytes": num_bytes}
    meta_path = folder / "meta.json"
    meta = json.loads(meta_path.read_text()) if meta_path.exists() else {}
    meta |= {"dtype": np.dtype(dtype).name, "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id}
    meta[split] = counts
    meta_path.write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    return counts


def open_shard(folder: Path, split: str) -> Shard:
    """Return a split, memory-mapped."""
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r")
    return Shard(tokens, np.load(folder / f"{split}_index.npy"))


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch
