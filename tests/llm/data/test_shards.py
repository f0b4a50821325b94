"""Shards hold every token once, and know where each document ends."""

import numpy as np

from llm.data.shards import open_shard, write_shard
from llm.data.tokenizer import train_tokenizer


def test_documents_come_back_from_their_offsets(tmp_path):
    texts = [f"document number {n}, with {n} words" for n in range(1500)]  # more than one batch
    tokenizer = train_tokenizer(texts, 300)
    counts = write_shard(tmp_path, "train", texts, tokenizer)
    shard = open_shard(tmp_path, "train")
    assert counts == {"documents": 1500, "tokens": len(shard.tokens), "bytes": sum(map(len, texts))}
    assert shard.offsets[-1] == len(shard.tokens)
    for n in (0, 1023, 1024, 1499):
        ids = shard.tokens[shard.offsets[n] : shard.offsets[n + 1]]
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids[:-1].tolist()) == texts[n]
    assert shard.tokens.dtype == np.uint16
    assert (shard.tokens == tokenizer.eos_id).sum() == 1500
