"""Byte-level BPE: round trips over all of Unicode, the chat template, and training by hand."""

import pytest
import torch  # noqa: F401 - transformers looks for it
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ConfigError
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer, train_tokenizer

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


def test_unknown_role_is_named(tokenizer):
    with pytest.raises(ConfigError, match="role 'tool'"):
        render(tokenizer, [{"role": "tool", "content": "x"}])
