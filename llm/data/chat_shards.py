"""Conversations packed without padding: their tokens, what the assistant must produce, boundaries and kinds.

Each conversation follows the one before, without end-of-text tokens; the index keeps where it begins. They have a
folder of their own, so that a changed conversation does not change what pretraining reads.
"""

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.chat import render_batch
from llm.data.shards import Shard, batch_items, map_numbers, open_shard, token_dtype, write_meta
from llm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chats:
    """The conversations of one split: their tokens, what the assistant must produce of them, and their kinds."""

    shard: Shard
    mask: NDArray[np.uint8]
    kinds: list[str]

    def __len__(self) -> int:
        return len(self.kinds)

    def row(self, i: int) -> tuple[list[int], list[int]]:
        """Return (ids, mask) of a conversation, as `llm.data.chat.render` gives them."""
        place = slice(self.shard.offsets[i], self.shard.offsets[i + 1])
        return self.shard.tokens[place].tolist(), self.mask[place].tolist()


def write_chats(
    folder: Path, split: str, conversations: Iterable[Mapping[str, Any]], tokenizer: Tokenizer
) -> dict[str, int]:
    """Write a split's `.bin`, `_mask.bin`, `_index.npy`, `_ids.npy`, `_kinds.npy` and its entry of meta.json.

    Args:    conversations: rows with `id`, `kind` and `messages`.
    Returns: its counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(tokenizer)
    offsets, kinds, codes, learned = array("q", [0]), dict[str, int](), array("i"), 0
    ids_written: list[bytes] = []
    with (folder / f"{split}.bin").open("wb") as stream, (folder / f"{split}_mask.bin").open("wb") as mask_stream:
        for batch in batch_items(conversations, lambda row: sum(len(one["content"]) for one in row["messages"])):
            for row, (ids, mask) in zip(
                batch, render_batch(tokenizer, [row["messages"] for row in batch]), strict=True
            ):
                stream.write(np.array(ids, dtype=dtype).tobytes())
                mask_stream.write(bytes(mask))
                ids_written.append(row["id"].encode())
                offsets.append(offsets[-1] + len(ids))
                codes.append(kinds.setdefault(row["kind"], len(kinds)))
                learned += sum(mask)
    np.save(folder / f"{split}_index.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / f"{split}_ids.npy", np.array(ids_written, dtype=np.bytes_))
    np.save(folder / f"{split}_kinds.npy", np.array(codes, dtype=np.int32))
    counts = {"conversations": len(codes), "tokens": offsets[-1], "learned": learned}
    write_meta(folder, tokenizer, split, {**counts, "kinds": list(kinds)})
    return counts


def open_chats(folder: Path, split: str) -> Chats:
    """Return the conversations of a split, memory-mapped."""
    names = json.loads((folder / "meta.json").read_text())[split]["kinds"]
    kinds = [names[code] for code in np.load(folder / f"{split}_kinds.npy")]
    return Chats(open_shard(folder, split), map_numbers(folder / f"{split}_mask.bin", "uint8"), kinds)
