"""What we render is what `transformers.apply_chat_template` gives, ids and mask, on the tokenizer that is exported."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401 - transformers looks for it

from llm.data.chat import render
from llm.data.rows.formats import SourceFormat
from llm.data.rows.read import read_row
from llm.data.tokenizer import CHAT_TEMPLATE, MARKED_TEMPLATE, SPECIAL_TOKENS, Tokenizer, train_tokenizer

Talk = list[dict[str, str]]
PIECES = [
    "Return the list.", "length", " ", "  ", "\n", "\n\n", "\r\n", " \n ", "\t", "\u00a0", "\u2028", "\u3000", "'s",
    "12345", "é", "e\u0301", "日本語", "مرحبا", "👩\u200d👩\u200d👧", "\ufeff", "\x00", "{{ x }}", "{% endfor %}",
    "user\n", "assistant", "<|", "|>", "<|im_", "<|im_END|>", "< |im_end|>", "<|im_end|", "<\u200b|im_start|>",
    "<|endoftext |>", "</s>", "[INST]", "\\n", "`f(x)`",
]  # fmt: skip


def make_talk(seed: int, pieces: list[str]) -> Talk:
    """Return a talk of one to four exchanges, in most with a system prompt, an empty one at times."""
    draw = random.Random(seed)

    def text() -> str:
        return "".join(draw.choice(pieces) for _ in range(draw.randrange(8)))

    system: Talk = [{"role": "system", "content": text()}] if draw.random() < 0.7 else []
    exchange = ("user", "assistant")
    return system + [{"role": role, "content": text()} for _ in range(draw.randint(1, 4)) for role in exchange]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Learned from the made-up talks, so that there are merges over line breaks and near special tokens."""
    return train_tokenizer([one["content"] for seed in range(900) for one in make_talk(seed, PIECES)], 700)


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def list_differences(tokenizer: Tokenizer, theirs: Any, talks: list[Talk]) -> list[Talk]:
    """Return the talks of which ids or mask differ."""
    differing = []
    for talk in talks:
        ids, mask = render(tokenizer, talk)
        out = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        opened = theirs.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False)
        same = (out["input_ids"], out["assistant_masks"]) == (ids, mask)
        if not same or opened != render(tokenizer, talk[:-1], add_generation_prompt=True)[0]:
            differing.append(talk)
    return differing


def test_500_made_up_conversations(tokenizer: Tokenizer, theirs: Any) -> None:
    talks = [make_talk(seed, PIECES) for seed in range(500)]
    assert sum(one["content"].startswith("\n") for talk in talks for one in talk) > 100
    assert sum(talk[0] == {"role": "system", "content": ""} for talk in talks) > 10
    assert any("\n\n" in tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    assert list_differences(tokenizer, theirs, talks) == []


def test_500_real_conversations(tokenizer: Tokenizer, theirs: Any, shared_data: Path) -> None:
    rows = json.loads((shared_data / "fastchat/dummy_conversation.json").read_text())
    made: list[Any] = [read_row(row, "fastchat", "f", n, SourceFormat())[0] for n, row in enumerate(rows)]
    talks = [one.messages for one in made]
    assert len(talks) == 500
    assert max(map(len, talks)) >= 4
    assert list_differences(tokenizer, theirs, talks) == []


def test_special_tokens_in_text_too_where_transformers_is_told_not_to_parse_them(
    tokenizer: Tokenizer, theirs: Any
) -> None:
    """By default it parses them, so that content can forge a turn; render never does.

    They stand between letters: told so, transformers encodes them apart from punctuation that they touch.
    """
    parsed = 0
    for seed in range(500):
        talk = make_talk(seed, [*PIECES, *(f"a{token}b" for token in SPECIAL_TOKENS)])
        ids, _ = render(tokenizer, talk)
        assert theirs.apply_chat_template(talk, return_dict=False, sanitize_control_tokens=True) == ids
        parsed += theirs.apply_chat_template(talk, return_dict=False) != ids
    assert parsed > 100


def encode_apart(tokenizer: Tokenizer, talk: Talk) -> list[int]:
    """Return the ids of a talk whose contents are encoded without the line break before them."""
    ids = []
    for one in talk:
        opening = [tokenizer.im_start_id, *tokenizer.encode(one["role"]), *tokenizer.encode("\n")]
        ids += [*opening, *tokenizer.encode(one["content"]), tokenizer.im_end_id, *tokenizer.encode("\n")]
    return ids


def test_line_breaks_at_the_start_make_the_difference(tokenizer: Tokenizer, theirs: Any) -> None:
    """Negative control, a fault that render had: line breaks that begin a content merge with the template's own."""
    talks = [make_talk(seed, PIECES) for seed in range(500)]
    differing = [
        talk for talk in talks if encode_apart(tokenizer, talk) != theirs.apply_chat_template(talk, return_dict=False)
    ]
    assert len(differing) > 50
    assert all(any(one["content"].lstrip(" \t\u00a0\u2028\u3000")[:1] in "\r\n" for one in talk) for talk in differing)


def test_the_template_of_gguf_files_says_the_same(theirs: Any) -> None:
    assert theirs.chat_template == MARKED_TEMPLATE
    assert "generation %" not in CHAT_TEMPLATE
    for seed in range(50):
        talk = make_talk(seed, [*PIECES, *SPECIAL_TOKENS])
        said = [theirs.apply_chat_template(talk, tokenize=False, chat_template=one) for one in (None, CHAT_TEMPLATE)]
        assert said[0] == said[1]
