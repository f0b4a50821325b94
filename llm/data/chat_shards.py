"""Conversations packed without padding: their tokens, what of them is learned, boundaries and kinds.

What is learned stands as one byte per token: the place of its weight in a list in meta.json, by default [0, 1].
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

from llm.config import require
from llm.data.chat import Row, render_batch
from llm.data.shards import Shard, batch_items, map_numbers, open_shard, token_dtype, write_meta
from llm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chats:
    """The conversations of one split: their tokens, the place in `weights` of the weight of each, and their kinds."""

    shard: Shard
    mask: NDArray[np.uint8]
    weights: NDArray[np.float64]
    kinds: list[str]

    def __len__(self) -> int:
        return len(self.kinds)

    def row(self, i: int) -> Row:
        """Return (ids, weights) of a conversation, as `llm.data.chat.render` gives them."""
        place = slice(self.shard.offsets[i], self.shard.offsets[i + 1])
        return self.shard.tokens[place].tolist(), self.weights[self.mask[place]].tolist()


def write_chats(
    folder: Path, split: str, conversations: Iterable[Mapping[str, Any]], tokenizer: Tokenizer
) -> dict[str, int]:
    """Write a split's `.bin`, `_mask.bin`, `_index.npy`, `_ids.npy`, `_kinds.npy` and its entry of meta.json.

    Args:    conversations: rows with `id`, `kind`, `messages` and, where they are not all 1, `weights`.
    Returns: its counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(tokenizer)
    offsets, kinds, codes, learned = array("q", [0]), dict[str, int](), array("i"), 0
    ids_written: list[bytes] = []
    weights = {0.0: 0, 1.0: 1}
    with (folder / f"{split}.bin").open("wb") as stream, (folder / f"{split}_mask.bin").open("wb") as mask_stream:
        for batch in batch_items(conversations, lambda row: sum(len(one["content"]) for one in row["messages"])):
            rendered = render_batch(
                tokenizer, [row["messages"] for row in batch], [row.get("weights") for row in batch]
            )
            for row, (ids, weights_of) in zip(batch, rendered, strict=True):
                stream.write(np.array(ids, dtype=dtype).tobytes())
                places = [weights.setdefault(weight, len(weights)) for weight in weights_of]
                require(len(weights) <= 256, "data/clean: messages have over 254 weights besides 0 and 1: round them")
                mask_stream.write(bytes(places))
                ids_written.append(row["id"].encode())
                offsets.append(offsets[-1] + len(ids))
                codes.append(kinds.setdefault(row["kind"], len(kinds)))
                learned += sum(weight > 0 for weight in weights_of)
    np.save(folder / f"{split}_index.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / f"{split}_ids.npy", np.array(ids_written, dtype=np.bytes_))
    np.save(folder / f"{split}_kinds.npy", np.array(codes, dtype=np.int32))
    counts = {"conversations": len(codes), "tokens": offsets[-1], "learned": learned}
    # Only where there are others, so that a corpus without weights keeps its bytes.
    listed = {"weights": list(weights)} if len(weights) > 2 else {}
    write_meta(folder, tokenizer, split, {**counts, "kinds": list(kinds), **listed})
    return counts


def open_chats(folder: Path, split: str) -> Chats:
    """Return the conversations of a split, memory-mapped."""
    entry = json.loads((folder / "meta.json").read_text())[split]
    kinds = [entry["kinds"][code] for code in np.load(folder / f"{split}_kinds.npy")]
    weights = np.array(entry.get("weights", [0, 1]), np.float64)
    return Chats(open_shard(folder, split), map_numbers(folder / f"{split}_mask.bin", "uint8"), weights, kinds)
