"""Tokenize: clean documents and conversations -> byte-level BPE and flat token shards.

Same inputs, params and seed give identical bytes. The tokenizer sees training text only. The corpus is read in passes,
a batch at a time: its sizes, the sample that merges are learned from, the shards, the sample that fertility is of.
With base.init_from nothing is learned: the tokenizer is that model's.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from pydantic import Field

from llm.config import StageParams, require
from llm.data.chat_shards import write_chats
from llm.data.fertility import measure_fertility
from llm.data.schema import hash_share, iter_batches
from llm.data.shards import write_shard
from llm.data.tokenizer import adopt_tokenizer, train_tokenizer
from llm.model.files import open_start
from llm.progress import track
from stages.plumbing.stage import Paths, main

SPLITS = ("train", "val")
READ_ROWS = 512


class Params(StageParams):
    vocab_size: int = Field(4096, ge=512, le=1 << 20, description="entries, special tokens included")
    train_bytes: int = Field(8_000_000, ge=1000, description="bytes of text that the merges are learned from")
    fertility_bytes: int = Field(2_000_000, ge=1000, description="bytes of text that fertility is measured on")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    documents = paths.deps["data/clean"] / "documents.parquet"
    talks = paths.deps["data/clean"] / "conversations.parquet"
    sizes = measure_sizes(documents)
    if params.base.init_from is None:
        tokenizer = train_tokenizer(sample_texts(documents, sizes, params.train_bytes), params.vocab_size)
    else:
        tokenizer = adopt_tokenizer(open_start(params.base.init_from))
    tokenizer.save(paths.outs["models/tokenizer"])
    counts, chats = {}, {}
    for split in SPLITS:
        rows = track(iter_split(documents, split, ["id", "text"]), f"tokenize {split}")
        counts[split] = write_shard(
            paths.outs["data/tokens"], split, ((row["id"], row["text"]) for row in rows), tokenizer
        )
        require(counts[split]["tokens"] > 0, f"data/clean holds no {split} text: add sources or change clean.holdout")
        # A folder of its own: pretrain must not run again because a conversation changed.
        chats[split] = write_chats(
            paths.outs["data/chats"], split, iter_split(talks, split, ["id", "kind", "messages", "weights"]), tokenizer
        )
    totals = {source: sum(size for (name, _), size in sizes.items() if name == source) for source, _ in sizes}
    sample = sample_sources(documents, totals, params.fertility_bytes)
    bytes_per_token = counts["val"]["bytes"] / max(1, counts["val"]["tokens"] - counts["val"]["documents"])
    return {
        **counts,
        "chats": chats,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": round(bytes_per_token, 4),
        "fertility": measure_fertility(sample, totals, tokenizer),
    }


def measure_sizes(path: Path) -> dict[tuple[str, str], int]:
    """Return the bytes of text of each (source, split)."""
    sizes: Counter[tuple[str, str]] = Counter()
    for batch in iter_batches(path, ["source", "split", "text"], READ_ROWS):
        lengths = pc.binary_length(batch["text"]).to_pylist()
        for source, split, length in zip(batch["source"].to_pylist(), batch["split"].to_pylist(), lengths, strict=True):
            sizes[source, split] += length
    return dict(sorted(sizes.items()))


def sample_texts(path: Path, sizes: dict[tuple[str, str], int], train_bytes: int) -> Iterator[str]:
    """Yield training texts, chosen by the hash of their ids so that about `train_bytes` of them come."""
    share = train_bytes / max(1, sum(size for (_, split), size in sizes.items() if split == "train"))
    for row in iter_split(path, "train", ["id", "text"]):
        if hash_share("tokenizer", row["id"]) < share:
            yield row["text"]


def sample_sources(path: Path, totals: dict[str, int], max_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield (source, text), about as many bytes of every source, chosen by the hash of their ids."""
    room = max_bytes / max(1, len(totals))
    for split in SPLITS:
        for row in iter_split(path, split, ["id", "source", "text"]):
            if hash_share("fertility", row["id"]) * totals[row["source"]] < room:
                yield row["source"], row["text"]


def iter_split(path: Path, split: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, a few hundred at a time in memory."""
    for batch in iter_batches(path, [*columns, "split"], READ_ROWS):
        yield from batch.filter(pc.equal(batch["split"], split)).select(columns).to_pylist()


if __name__ == "__main__":
    main(Params, run)
