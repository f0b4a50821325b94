"""The weight of an answer, from the line of a file to what a training stage reads."""

import json
from pathlib import Path

from llm.data.chat_shards import open_chats, write_chats
from llm.data.cleaner import Rules, clean_batch
from llm.data.dedup.minhash import NearDuplicateParams
from llm.data.filters.judge import FilterParams
from llm.data.loader import pad_batch
from llm.data.pii.find import PIIParams
from llm.data.rows.formats import SourceFormat
from llm.data.rows.read import read_row
from llm.data.schema import RecordWriter, iter_batches
from llm.data.tokenizer import train_tokenizer

LINE = json.dumps(
    {
        "messages": [
            {"role": "system", "content": "  "},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "Three.", "weight": 0},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Two.", "weight": 1.5},
            {"role": "user", "content": "Thanks."},
        ]
    }
)


def test_weights_travel_from_the_file_to_the_batch(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, "mine")
    writer.add(read_row(json.loads(LINE), "mine", "talks.jsonl", 0, SourceFormat()))
    writer.add(read_row(json.loads(LINE.replace("1.5", "null").replace("0}", "1}")), "mine", "t", 1, SourceFormat()))
    writer.close()
    (batch,) = iter_batches(tmp_path / "conversations.parquet")
    cleaned = clean_batch("conversations", batch, Rules(FilterParams(), NearDuplicateParams(), PIIParams()))
    rows = cleaned.kept.to_pylist()
    assert [row["weights"] for row in rows] == [[0, 1.5], None]
    tokenizer = train_tokenizer(["Two? Three. Sure? Thanks."], 300)
    write_chats(tmp_path / "chats", "train", rows, tokenizer)
    weighted, plain = (open_chats(tmp_path / "chats", "train").row(i) for i in range(2))
    said = tokenizer.encode("Two.") + [tokenizer.im_end_id]
    assert [(i, weight) for i, weight in zip(*weighted, strict=True) if weight] == [(i, 1.5) for i in said]
    both = tokenizer.encode("Three.") + [tokenizer.im_end_id] + said
    assert [(i, weight) for i, weight in zip(*plain, strict=True) if weight] == [(i, 1) for i in both]
    made = pad_batch([weighted], tokenizer.eos_id)
    assert made.targets[made.targets >= 0].tolist() == said
    assert made.weights is not None
    assert made.weights.sum() == 1.5 * len(said)
