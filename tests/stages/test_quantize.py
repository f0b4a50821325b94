"""Quantize on a tiny trained model: three files, figures in the right order, the same bytes on every run."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader

from llm.config import Base, ConfigError
from llm.data.schema import Document, write_rows
from llm.data.tokenizer import Tokenizer
from stages import quantize
from stages.plumbing.stage import Paths


def run(inputs: dict[str, Path], out: Path, **params: object) -> tuple[dict, Paths]:
    paths = Paths("quantize", inputs, {"models/quantized": out})
    section = quantize.Params(
        base=Base(threads=1), calibration=8, windows=16, window_tokens=48, positions=400, **params
    )
    return quantize.run(section, paths), paths


def test_card_and_files(policy_inputs: dict[str, Path], tmp_path: Path):
    metrics, paths = run(policy_inputs, tmp_path / "a")
    card = metrics["card"]
    assert list(card) == ["original", "q8_0", "q4_0", "q4_0_rtn"]
    for figures in card.values():
        assert set(figures) == {"bits_per_byte", "size_bytes", "bits_per_weight", "agreement"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"q8_0.gguf", "q4_0.gguf", "q4_0_rtn.gguf"}
    assert card["q8_0"]["size_bytes"] == (tmp_path / "a/q8_0.gguf").stat().st_size
    # Matrices cost 8.5 bits a weight; the few norms stay fp32.
    assert 8.5 < card["q8_0"]["bits_per_weight"] < 8.7
    assert 4.5 < card["q4_0"]["bits_per_weight"] < card["q8_0"]["bits_per_weight"]
    assert card["q4_0"]["bits_per_weight"] == card["q4_0_rtn"]["bits_per_weight"]
    assert card["q8_0"]["agreement"] > 0.97
    assert card["q8_0"]["bits_per_byte"] == pytest.approx(card["original"]["bits_per_byte"], rel=0.01)
    assert card["q4_0"]["agreement"] > 0.7
    assert metrics["sample"]["positions"] == 400
    assert all(value > 0 for value in paths.cost.values())
    assert set(paths.cost) == {f"{kind}_scored_tokens_per_s" for kind in ("q8_0", "q4_0", "q4_0_rtn")}

    again, _ = run(policy_inputs, tmp_path / "b")
    assert again == metrics
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_embedding_may_be_four_bits_too(policy_inputs: dict[str, Path], tmp_path: Path):
    run(policy_inputs, tmp_path, embedding="q4_0")
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "q4_0.gguf").tensors}
    assert kinds["token_embd.weight"] == GGMLQuantizationType.Q4_0


def test_no_held_out_text_is_named(policy_inputs: dict[str, Path], tmp_path: Path):
    write_rows(tmp_path / "documents.parquet", Document, [], {})
    tokenizer = Tokenizer.load(policy_inputs["models/policy"])
    with pytest.raises(ConfigError, match="no held-out text"):
        quantize.draw_held_out(tmp_path, tokenizer, 64, quantize.Params())
