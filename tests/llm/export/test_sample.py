"""The held-out sample: worked by hand."""

import math
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm.config import ConfigError
from llm.data.tokenizer import Tokenizer
from llm.export.sample import agreement, bits_per_byte, draw_sample, read_texts, score_torch, spread
from llm.model.transformer import Transformer


def test_bits_per_byte_by_hand():
    # 1/2, 1/4 and 1/8 cost 1 + 2 + 3 bits over 4 bytes.
    logprobs = [[math.log(1 / 2), math.log(1 / 4)], [math.log(1 / 8)]]
    assert bits_per_byte(logprobs, 4) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="no bytes"):
        bits_per_byte(logprobs, 0)


def test_spread_takes_even_distances():
    assert spread(range(10), 5) == [1, 3, 5, 7, 9]
    assert spread(range(3), 5) == [0, 1, 2]
    assert len(set(spread(range(1001), 400))) == 400


def test_agreement_is_a_share():
    assert agreement([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75


def test_windows_start_at_the_end_of_text_and_count_their_bytes(tokenizer: Tokenizer):
    sample = draw_sample(["abc", "Return the number é"], tokenizer, context=64, num_windows=2, num_positions=4)
    assert [window[0] for window in sample.windows] == [tokenizer.eos_id] * 2
    assert sample.num_bytes == len("abc") + len("Return the number é".encode())
    assert all(0 < length < len(sample.windows[w]) for w, length in sample.positions)
    cut = draw_sample(["abc" * 50], tokenizer, context=8, num_windows=1, num_positions=4)
    assert len(cut.windows[0]) == 8


def test_too_little_text_is_said(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture):
    sample = draw_sample(["Return it."], tokenizer, context=8, num_windows=1, num_positions=400)
    assert len(sample.positions) == len(sample.windows[0]) - 1
    assert "instead of 400" in caplog.text
    with pytest.raises(ConfigError, match="no held-out text"):
        draw_sample([], tokenizer, context=8, num_windows=1, num_positions=400)


def test_torch_scores_are_next_token_log_probabilities(model: Transformer, tokenizer: Tokenizer):
    sample = draw_sample(["Return the last item"], tokenizer, context=64, num_windows=1, num_positions=2)
    logprobs, greedy = score_torch(model, sample)
    window, (_, length) = sample.windows[0], sample.positions[0]
    with torch.no_grad():
        alone = model.unembed(model(torch.tensor([window[:length]])))[0, -1]
    assert greedy[0] == int(alone.argmax())
    assert logprobs[0][length - 1] == pytest.approx(float(alone.log_softmax(-1)[window[length]]), abs=1e-5)


def test_texts_are_a_fair_sample_of_a_split_in_reading_order(tmp_path: Path):
    """Documents of one package stand together: the first 128 were of two packages, and spoke for the whole split."""
    rows = [{"id": f"{group}-{i}", "text": f"{group}-{i}", "split": "val"} for group in "abcdefgh" for i in range(100)]
    rows += [{"id": f"t-{i}", "text": f"t-{i}", "split": "train"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "documents.parquet")
    drawn = read_texts(tmp_path, "val", 80)
    assert len(set(drawn)) == 80
    counts = Counter(text[0] for text in drawn)
    assert set(counts) == set("abcdefgh")
    assert max(counts.values()) < 25
    assert drawn == read_texts(tmp_path, "val", 200)[:80]
    assert sorted(read_texts(tmp_path, "train", 9)) == ["t-0", "t-1", "t-2"]
