"""Tokenize: clean documents -> byte-level BPE and flat token shards.

Same inputs, params and seed give identical bytes. The tokenizer sees training text only.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from llm.config import StageParams, require
from llm.data.schema import iter_rows
from llm.data.shards import write_shard
from llm.data.tokenizer import train_tokenizer
from llm.progress import track
from stages.plumbing.stage import Paths, main


class Params(StageParams):
    vocab_size: int = Field(4096, ge=512, le=1 << 20, description="entries, special tokens included")
    train_bytes: int = Field(8_000_000, ge=1000, description="bytes of text that the merges are learned from")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    documents = paths.deps["data/clean"] / "documents.parquet"
    tokenizer = train_tokenizer(take_bytes(read_texts(documents, "train"), params.train_bytes), params.vocab_size)
    tokenizer.save(paths.outs["models/tokenizer"])
    counts = {}
    for split in ("train", "val"):
        texts = track(read_texts(documents, split), f"tokenize {split}")
        counts[split] = write_shard(paths.outs["data/tokens"], split, texts, tokenizer)
        require(counts[split]["tokens"] > 0, f"data/clean holds no {split} text: add sources or change clean.holdout")
    fertility = counts["val"]["bytes"] / max(1, counts["val"]["tokens"] - counts["val"]["documents"])
    return {**counts, "vocab_size": tokenizer.vocab_size, "bytes_per_token": round(fertility, 4)}


def read_texts(path: Path, split: str) -> Iterator[str]:
    """Yield the texts of a split, in file order."""
    return (row["text"] for row in iter_rows(path, ["text", "split"]) if row["split"] == split)


def take_bytes(texts: Iterator[str], limit: int) -> Iterator[str]:
    """Yield texts until `limit` bytes are reached; the file's order is by hash, so a prefix is a fair sample."""
    used = 0
    for text in texts:
        yield text
        used += len(text.encode())
        if used >= limit:
            return


if __name__ == "__main__":
    main(Params, run)
