"""The stage on a small corpus: what it writes, what it samples, and that sft reads the same rows as by rendering."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from llm.config import ConfigError
from llm.data.chat import render
from llm.data.loader import ConversationLoader
from llm.data.schema import Conversation, Document, hash_share, iter_rows, write_rows
from llm.data.shards import open_shard
from llm.data.tokenizer import Tokenizer, train_tokenizer
from stages import sft
from stages.plumbing.stage import Paths
from stages.tokenize import Params, measure_sizes, run, sample_sources, sample_texts

TEXTS = [f"The mill number {n} grinds {n % 7} sacks of grain, and the wheel turns {n} times. " * 3 for n in range(300)]
PARAMS = Params(vocab_size=512, train_bytes=20_000, fertility_bytes=10_000)


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    documents = [
        Document(f"d{i}", text + ("Мельница." if i % 3 else ""), "books" if i % 3 else "notes", "", "", "{}", f"g{i}")
        for i, text in enumerate(TEXTS)
    ]
    splits = {f"g{i}": "val" if i % 10 == 0 else "train" for i in range(len(TEXTS))}
    write_rows(folder / "documents.parquet", Document, documents, splits)
    talks = []
    for i in range(120):
        turns = [
            {"role": "user", "content": f"What does mill {i} do?"},
            {"role": "assistant", "content": TEXTS[i][: i * 4]},
        ]
        talks.append(Conversation(f"c{i}", f"g{i}", "chat", ("qa", "smalltalk", "principle")[i % 3], turns))
    write_rows(folder / "conversations.parquet", Conversation, talks, splits)
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "clean")


def tokenize(clean: Path, root: Path) -> dict[str, Any]:
    outs = {name: root / name for name in ("data/tokens", "data/chats", "models/tokenizer")}
    return run(PARAMS, Paths("tokenize", {"data/clean": clean}, outs))


@pytest.fixture(scope="module")
def done(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("tokenized")
    return root, tokenize(clean, root)


def test_what_is_counted(clean: Path, done: tuple[Path, dict[str, Any]]) -> None:
    root, metrics = done
    rows = pq.read_table(clean / "documents.parquet").to_pylist()
    train = [row["text"] for row in rows if row["split"] == "train"]
    assert metrics["train"]["documents"] == len(train) == 270
    assert metrics["train"]["bytes"] == sum(len(text.encode()) for text in train)
    assert metrics["chats"]["train"]["conversations"] + metrics["chats"]["val"]["conversations"] == 120
    assert set(metrics["fertility"]["source"]) == {"books", "notes"}
    assert set(metrics["fertility"]["script"]) == {"latin", "cyrillic"}
    for kind in ("source", "script"):
        assert sum(one["share"] for one in metrics["fertility"][kind].values()) == pytest.approx(1, abs=1e-5)
    shard, tokenizer = open_shard(root / "data/tokens", "train"), Tokenizer.load(root / "models/tokenizer")
    assert [
        tokenizer.decode(shard.tokens[a : b - 1].tolist())
        for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)
    ] == train


def test_the_sample_is_chosen_by_id_and_streamed(clean: Path) -> None:
    """The same texts, in the same order, as by holding all rows and hashing their ids; so the merges are the same."""
    rows = [row for row in iter_rows(clean / "documents.parquet") if row["split"] == "train"]
    share = 20_000 / sum(len(row["text"].encode()) for row in rows)
    expected = [row["text"] for row in rows if hash_share("tokenizer", row["id"]) < share]
    sizes = measure_sizes(clean / "documents.parquet")
    assert list(sample_texts(clean / "documents.parquet", sizes, 20_000)) == expected
    assert 0 < len(expected) < len(rows)
    assert set(sizes) == {(source, split) for source in ("books", "notes") for split in ("train", "val")}
    assert train_tokenizer(expected, 512).backend.to_str() == train_tokenizer(iter(expected), 512).backend.to_str()


def test_every_source_is_sampled_alike(clean: Path) -> None:
    sizes = measure_sizes(clean / "documents.parquet")
    totals = {name: sum(size for (source, _), size in sizes.items() if source == name) for name in ("books", "notes")}
    taken = dict.fromkeys(totals, 0)
    for source, text in sample_sources(clean / "documents.parquet", totals, 10_000):
        taken[source] += len(text.encode())
    assert all(2_500 < size < 10_000 for size in taken.values())


def test_the_same_bytes_again(clean: Path, done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, metrics = done
    assert tokenize(clean, tmp_path) == metrics
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert Path("data/chats/train_mask.bin") in files
    assert all((root / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_a_corpus_without_held_out_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    document = Document("d", TEXTS[0], "s", "", "", "{}", "g")
    write_rows(tmp_path / "clean/documents.parquet", Document, [document], {"g": "train"})
    write_rows(tmp_path / "clean/conversations.parquet", Conversation, [], {})
    with pytest.raises(ConfigError, match="no val text"):
        tokenize(tmp_path / "clean", tmp_path)


def test_sft_reads_what_it_would_render(clean: Path, done: tuple[Path, dict[str, Any]]) -> None:
    """Batches from the packed conversations are those of rendering each row, repeats and lengths included."""
    tokenizer = Tokenizer.load(done[0] / "models/tokenizer")
    params = sft.Params(steps=4, batch_size=8, max_len_tokens=90, repeat={"smalltalk": 4, "principle": 2})
    expected: dict[str, list[tuple[list[int], list[int]]]] = {"train": [], "val": []}
    too_long = 0
    for row in iter_rows(clean / "conversations.parquet"):
        pair = render(tokenizer, row["messages"])
        if len(pair[0]) > 90:
            too_long += 1
            continue
        copies = {"smalltalk": 4, "principle": 2}.get(row["kind"], 1) if row["split"] == "train" else 1
        expected[row["split"]] += [pair] * copies
    rows, names, left_out = sft.read_conversations(done[0] / "data/chats", params.max_len_tokens, params.repeat)
    assert rows == expected
    assert left_out == too_long > 0
    ours, theirs = (ConversationLoader(one["train"], 8, 7, tokenizer.eos_id) for one in (rows, expected))
    for step in range(ours.batches_per_epoch + 2):
        assert all(torch.equal(a, b) for a, b in zip(ours.batch(step)[:2], theirs.batch(step)[:2], strict=True))
    assert json.loads((done[0] / "data/chats/meta.json").read_text())["train"]["kinds"]
