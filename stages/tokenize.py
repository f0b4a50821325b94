"""Tokenize: clean documents -> byte-level BPE and flat token shards.

Same inputs, params and seed give identical bytes. The tokenizer sees training text only.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from llm.config import StageParams, require
from llm.data.schema import hash_share, iter_rows
from llm.data.shards import write_shard
from llm.data.tokenizer import train_tokenizer
from llm.progress import track
from stages.plumbing.stage import Paths, main


class Params(StageParams):
    vocab_size: int = Field(4096, ge=512, le=1 << 20, description="entries, special tokens included")
    train_bytes: int = Field(8_000_000, ge=1000, description="bytes of text that the merges are learned from")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    documents = paths.deps["data/clean"] / "documents.parquet"
    tokenizer = train_tokenizer(sample_texts(documents, params.train_bytes), params.vocab_size)
    tokenizer.save(paths.outs["models/tokenizer"])
    counts = {}
    for split in ("train", "val"):
        texts = (row["text"] for row in iter_rows(documents, ["text", "split"]) if row["split"] == split)
        counts[split] = write_shard(paths.outs["data/tokens"], split, track(texts, f"tokenize {split}"), tokenizer)
        require(counts[split]["tokens"] > 0, f"data/clean holds no {split} text: add sources or change clean.holdout")
    fertility = counts["val"]["bytes"] / max(1, counts["val"]["tokens"] - counts["val"]["documents"])
    return {**counts, "vocab_size": tokenizer.vocab_size, "bytes_per_token": round(fertility, 4)}


def sample_texts(path: Path, train_bytes: int) -> Iterator[str]:
    """Yield training texts, chosen by the hash of their ids so that about `train_bytes` of them come."""
    rows = [row for row in iter_rows(path, ["id", "text", "split"]) if row["split"] == "train"]
    share = train_bytes / max(1, sum(len(row["text"].encode()) for row in rows))
    return (row["text"] for row in rows if hash_share("tokenizer", row["id"]) < share)


if __name__ == "__main__":
    main(Params, run)
