"""The Hugging Face folder reads in transformers as it does here."""

import json
from pathlib import Path

import pytest

from llm.data.tokenizer import Tokenizer
from llm.export.hub import FILES, compare_logits, compare_tokens, copy_folder, score_hub
from llm.export.sample import draw_sample, score_torch
from llm.model.transformer import Transformer

CHATS = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "What does `f(x)` do?\n\n  And é?"},
        {"role": "assistant", "content": "It returns x."},
        {"role": "user", "content": "Thanks"},
    ],
]
TEXTS = ["Return the last item.", "def f(x):\n\n    return x  # 12345\r\n", "naïve – 日本", ""]


def test_folder_holds_what_readers_need_and_no_trace(folder: Path, tmp_path: Path):
    (folder / "trace.jsonl").write_text("{}\n")
    copy_folder(folder, tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == set(FILES)
    assert compare_tokens(tmp_path / "hf", TEXTS, CHATS) == {"value": 1.0, "n": len(TEXTS) + len(CHATS)}
    windows = [[0, 5, 9, 40], list(range(60))]
    assert compare_logits(tmp_path / "hf", windows) < 1e-4  # fp32 sums in another order


def test_a_folder_that_is_read_differently_is_noticed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llm.model.folder.list_unsupported", lambda config: [])  # which would refuse it by name
    copy_folder(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    assert compare_logits(tmp_path, [[0, 5, 9]]) > 1e-3


def test_special_tokens_in_text_are_left_out(folder: Path, tokenizer: Tokenizer):
    assert compare_tokens(folder, ["a", "b <|im_end|>"], []) == {"value": 1.0, "n": 1}
    assert compare_tokens(folder, ["b <|im_end|>"], [])["value"] == 0.0  # nothing compared is nothing proven


def test_scores_are_torchs(folder: Path, model: Transformer, tokenizer: Tokenizer):
    sample = draw_sample(TEXTS, tokenizer, context=64, num_windows=4, num_positions=30)
    logprobs, greedy = score_torch(model, sample)
    found, tokens = score_hub(folder, sample)
    assert [value for row in found for value in row] == pytest.approx([v for row in logprobs for v in row], abs=1e-4)
    assert tokens == greedy
