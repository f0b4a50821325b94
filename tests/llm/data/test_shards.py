"""Shards hold every token once, and know where each document or conversation ends."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ConfigError
from llm.data import shards
from llm.data.chat import render, render_batch
from llm.data.chat_shards import open_chats, write_chats
from llm.data.shards import Shard, batch_items, open_shard, write_shard
from llm.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = [f"document number {n}, with {n} words" for n in range(1500)]  # more than one batch


def name_texts(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"id-{n}", text) for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def test_documents_come_back_from_their_offsets(tmp_path: Path, tokenizer: Tokenizer) -> None:
    counts = write_shard(tmp_path, "train", name_texts(TEXTS), tokenizer)
    shard = open_shard(tmp_path, "train")
    assert counts == {"documents": 1500, "tokens": len(shard.tokens), "bytes": sum(map(len, TEXTS))}
    assert shard.offsets[-1] == len(shard.tokens)
    assert len(shard) == 1500
    for n in (0, 1023, 1024, 1499):
        ids = shard.tokens[shard.offsets[n] : shard.offsets[n + 1]]
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids[:-1].tolist()) == TEXTS[n]
    assert shard.tokens.dtype == np.uint16
    assert (shard.tokens == tokenizer.eos_id).sum() == 1500
    assert shard.documents(int(shard.offsets[7]), int(shard.offsets[9])) == ["id-7", "id-8"]


def test_segments_and_starts_by_hand() -> None:
    """Documents of 3, 1 and 4 tokens: the window 2:7 holds the end of the first, the second, and three of the third."""
    shard = Shard(np.arange(8, dtype=np.uint16), np.array([0, 3, 4, 8]), np.array([b"one", b"two", b"three"]))
    assert shard.segments(0, 8).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert shard.segments(2, 7).tolist() == [0, 1, 2, 2, 2]
    assert shard.starts(2, 7).tolist() == [0, 1, 2]
    assert shard.starts(0, 8).tolist() == [0, 3, 4]
    assert shard.segments(5, 6).tolist() == [0]
    assert shard.documents(2, 7) == ["one", "two", "three"]
    assert shard.documents(3, 4) == ["two"]
    with pytest.raises(AssertionError, match="window"):
        shard.segments(5, 9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.data())
def test_segments_confine_attention_to_documents(lengths: list[int], data: st.DataObject) -> None:
    """Whatever the window: two tokens share a number exactly when one document holds both."""
    offsets = np.cumsum([0, *lengths])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    shard = Shard(
        np.zeros(offsets[-1], dtype=np.uint16), offsets, np.array([str(n).encode() for n in range(len(lengths))])
    )
    start = data.draw(st.integers(0, int(offsets[-1]) - 1))
    stop = data.draw(st.integers(start + 1, int(offsets[-1])))
    segments, owners = shard.segments(start, stop), owner[start:stop]
    assert ((segments[:, None] == segments) == (owners[:, None] == owners)).all()
    assert (np.diff(segments) >= 0).all()
    assert segments[0] == 0
    assert shard.starts(start, stop).tolist() == [
        i for i in range(stop - start) if i == 0 or owners[i] != owners[i - 1]
    ]


LINES = st.lists(st.text(max_size=8) | st.sampled_from(["\n", " \n", "\r\n", "word", "...\n", "1\n", "\n\n a", "é\n"]))


@settings(max_examples=200, deadline=None)
@given(LINES.map("".join), st.integers(1, 12))
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(tokenizer: Tokenizer, text: str, limit: int) -> None:
    pieces = list(shards.cut_texts([text], limit))
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece for piece, _ in pieces) == text
    assert [i for piece, _ in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_long_texts_are_cut_into_several_pieces() -> None:
    assert len(list(shards.cut_texts(["line\n" * 100], 50))) > 5


def test_pieces_and_batches_do_not_change_the_bytes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["\n".join(TEXTS[n : n + 40]) for n in range(0, 400, 40)] + ["", "end"]
    for name, limit in (("whole", 10**9), ("pieces", 100)):
        monkeypatch.setattr(shards, "BATCH_CHARS", limit)
        write_shard(tmp_path / name, "train", name_texts(texts), tokenizer)
    for file in ("train.bin", "train_index.npy", "train_ids.npy", "meta.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes()
    assert (np.diff(open_shard(tmp_path / "pieces", "train").offsets) == [
        len(tokenizer.encode(text)) + 1 for text in texts
    ]).all()  # fmt: skip


def test_batches_are_bounded_in_number_and_size() -> None:
    drawn = 0

    def sizes() -> Iterator[int]:
        nonlocal drawn
        for size in [1] * 3000 + [shards.BATCH_CHARS] * 3:
            drawn += 1
            yield size

    batches = batch_items(sizes(), lambda size: size)
    assert len(next(batches)) == shards.BATCH == drawn  # nothing is read ahead
    assert [len(batch) for batch in batches] == [shards.BATCH, 3001 - 2 * shards.BATCH, 1, 1]


def make_talk(n: int) -> dict[str, object]:
    turns = [
        {"role": "user", "content": f"What is document {n}?"},
        {"role": "assistant", "content": TEXTS[n] * (n % 3)},
    ]
    return {
        "id": f"talk-{n}",
        "kind": "smalltalk" if n % 5 else "qa",
        "messages": [{"role": "system", "content": "Be brief."}] * (n % 2) + turns,
    }


def test_conversations_come_back_as_they_are_rendered(tmp_path: Path, tokenizer: Tokenizer) -> None:
    talks = [make_talk(n) for n in range(1100)]
    counts = write_chats(tmp_path, "train", talks, tokenizer)
    chats = open_chats(tmp_path, "train")
    rendered = [render(tokenizer, talk["messages"]) for talk in talks]  # type: ignore[arg-type]
    assert len(chats) == counts["conversations"] == 1100
    assert [chats.row(i) for i in range(1100)] == rendered
    assert chats.shard.ids[7] == b"talk-7"
    assert chats.kinds == [talk["kind"] for talk in talks]
    assert counts["tokens"] == len(chats.shard.tokens) == len(chats.mask) == sum(len(ids) for ids, _ in rendered)
    assert counts["learned"] == chats.mask.sum() == sum(sum(mask) for _, mask in rendered)
    assert chats.shard.segments(0, int(chats.shard.offsets[2])).max() == 1


def test_weights_come_back_exactly_and_only_where_there_are_any(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    plain = {"id": "a", "kind": "qa", "messages": turns, "weights": None}
    write_chats(tmp_path / "none", "train", [plain, plain], tokenizer)
    write_chats(tmp_path / "zero", "train", [plain, {**plain, "weights": [0.0, 1.0]}], tokenizer)
    write_chats(tmp_path / "some", "train", [plain, {**plain, "weights": [0.1, 7.25]}], tokenizer)
    names = ("none", "zero", "some")
    none, zero, some = (json.loads((tmp_path / name / "meta.json").read_text())["train"] for name in names)
    assert [one.get("weights") for one in (none, zero, some)] == [None, None, [0, 1, 0.1, 7.25]]
    assert zero["learned"] < none["learned"] == some["learned"]
    _, alike = open_chats(tmp_path / "none", "train").row(1)
    ids, weights = open_chats(tmp_path / "some", "train").row(1)
    assert open_chats(tmp_path / "some", "train").row(0) == (ids, alike)
    said = [one for one, same in zip(weights, alike, strict=True) if same]
    assert said == [0.1] * (len(said) // 2) + [7.25] * (len(said) // 2)
    assert not any(one for one, same in zip(weights, alike, strict=True) if not same)


def test_too_many_different_weights_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant")]
    talks = [{"id": "a", "kind": "qa", "messages": turns, "weights": [n / 100]} for n in range(2, 258)]
    with pytest.raises(ConfigError, match="over 254 weights"):
        write_chats(tmp_path, "train", talks, tokenizer)
    assert write_chats(tmp_path, "train", talks[:-1], tokenizer)["conversations"] == 255  # 1.0 is among them


def test_a_split_without_conversations_opens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert write_chats(tmp_path, "val", [], tokenizer)["tokens"] == 0
    assert len(open_chats(tmp_path, "val")) == 0


def test_rendering_many_is_rendering_each(tokenizer: Tokenizer) -> None:
    talks = [make_talk(n)["messages"] for n in range(7)]
    assert render_batch(tokenizer, talks) == [render(tokenizer, talk) for talk in talks]  # type: ignore[arg-type]
    assert render_batch(tokenizer, []) == []
    with pytest.raises(ConfigError, match="role 'tool'"):
        render_batch(tokenizer, [[{"role": "tool", "content": "x"}]])
