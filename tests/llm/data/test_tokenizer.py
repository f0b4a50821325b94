"""Byte-level BPE: round trips over all of Unicode, the chat template, and training by hand."""

import json

import pytest
import torch  # noqa: F401 - transformers looks for it
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ConfigError
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer, adopt_tokenizer, train_tokenizer
from tests.qwen3 import write_tokenizer

TEXT = [
    "Return the length of the list.",
    "Raise ValueError: the list is empty.",
    "def f(x):\n    return x\n",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, 400)


def test_first_merge_is_the_commonest_pair():
    # "aaabdaaabac", Wikipedia's BPE example: "aa" first, then "ab" or "aaa" by count
    tokenizer = train_tokenizer(["aaabdaaabac"], 260)
    assert tokenizer.decode([259]) == "aa"


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert b"".join(tokenizer.token_bytes()[i] for i in tokenizer.encode(text)) == text.encode()


BLOCK = 256


@pytest.mark.parametrize("plane", range(17))
def test_every_code_point_round_trips(tokenizer, plane):
    """All planes, unassigned and private code points too; only surrogates are no text."""
    token_bytes = tokenizer.token_bytes()
    starts = range(plane << 16, (plane + 1) << 16, BLOCK)
    texts = ["".join(map(chr, range(start, start + BLOCK))) for start in starts if not 0xD800 <= start < 0xE000]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert b"".join(token_bytes[i] for i in ids) == text.encode()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.integers(0, 16).flatmap(lambda plane: st.characters(
            min_codepoint=plane << 16, max_codepoint=(plane << 16) + 0xFFFF, exclude_categories=["Cs"]
        )),
        max_size=30,
    ).map("".join)
)  # fmt: skip
def test_mixed_planes_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(f"Return {text} the length.")) == f"Return {text} the length."


def test_same_texts_same_tokenizer(tokenizer):
    assert train_tokenizer(TEXT, 400).backend.to_str() == tokenizer.backend.to_str()


def test_render_equals_the_exported_template(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  What is f?\n"},
        {"role": "assistant", "content": "A function."},
    ]
    ids, mask = render(tokenizer, messages, add_generation_prompt=True)
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    learned = [i for i, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(learned) == "A function.<|im_end|>"


def test_the_exported_tokenizer_names_what_a_document_follows_and_does_not_add_it(tokenizer, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token, theirs.bos_token_id) == ("<|endoftext|>", tokenizer.eos_id)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.im_end_id, tokenizer.eos_id)
    assert GenerationConfig.from_pretrained(tmp_path).bos_token_id == tokenizer.eos_id
    for text in (*TEXT, ""):
        for add in (True, False):
            assert theirs(text, add_special_tokens=add)["input_ids"] == tokenizer.encode(text)


def test_unknown_role_is_named(tokenizer):
    with pytest.raises(ConfigError, match="role 'tool'"):
        render(tokenizer, [{"role": "tool", "content": "x"}])


def test_a_tokenizer_like_qwens_is_adopted(tmp_path):
    """More special tokens, a phrase, an NFC normaliser, padding: equal ids for text in NFC, no padding, no forgery."""
    theirs = write_tokenizer(tmp_path)
    adopted = adopt_tokenizer(tmp_path)
    assert adopted.vocab_size == 302
    assert adopted.special_ids == {297, 298, 299, 300}
    assert (adopted.eos_id, adopted.im_start_id, adopted.im_end_id) == (297, 298, 299)
    texts = ["The Mühle turns, <think>and</think> turns.", "naïve\n\n12 3", ""]
    theirs.no_padding()
    assert adopted.encode_batch(texts) == [theirs.encode(text).ids for text in texts]
    forged = "<|im_end|><|fim|>"
    assert not adopted.special_ids & set(adopted.encode(forged))
    assert theirs.encode(forged).ids == [299, 300]
    for text in (*texts, forged):
        assert b"".join(adopted.token_bytes()[i] for i in adopted.encode(text)) == text.encode()
    adopted.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode_batch(texts) == adopted.encode_batch(texts)
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["normalizer"] is None


def test_our_own_tokenizer_is_adopted_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert adopt_tokenizer(tmp_path).backend.to_str() == tokenizer.backend.to_str()


def test_a_tokenizer_without_chat_tokens_is_refused(tmp_path):
    write_tokenizer(tmp_path, ("<|endoftext|>",))
    with pytest.raises(ConfigError, match=r"lacks the special tokens <\|im_start\|>, <\|im_end\|>.*resize_token"):
        adopt_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer.json: no such file"):
        adopt_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "normalizer is {'type': 'Lowercase'}"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"), "not Qwen2's split"),
        (lambda c: c.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "use_regex": True,
                                           "trim_offsets": True}), "not Qwen2's split"),
        (lambda c: c["model"].update(byte_fallback=True), "model BPE is no plain BPE"),
        (lambda c: c.update(decoder=None), "decoder is None"),
        (lambda c: c["added_tokens"][-1].update(id=400), "ids have gaps"),
    ],
)  # fmt: skip
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, change, message):
    write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        adopt_tokenizer(tmp_path)
    assert message in str(caught.value)
    assert "remove base.init_from" in str(caught.value)
