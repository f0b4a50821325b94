"""Quantize on a tiny trained model: four files, figures in the right order, the same bytes on every run."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader

from llm.config import Base, ConfigError
from llm.data.schema import Document, write_rows
from llm.data.tokenizer import Tokenizer
from llm.export.gguf import rename
from llm.export.sample import read_texts
from llm.model.folder import load_model
from stages import quantize
from stages.plumbing.stage import Paths


def run(inputs: dict[str, Path], out: Path, **params: object) -> tuple[dict, Paths]:
    paths = Paths("quantize", inputs, {"models/quantized": out})
    section = quantize.Params(
        base=Base(threads=1),
        **{
            "calibration": 8,
            "windows": 12,
            "compared": 16,
            "window_tokens": 48,
            "positions": 400,
            "questions": 8,
            **params,
        },
    )
    return quantize.run(section, paths), paths


def test_card_and_files(policy_inputs: dict[str, Path], tmp_path: Path):
    metrics, paths = run(policy_inputs, tmp_path / "a")
    card = metrics["card"]
    assert set(card) == {"original", "q8_0", "mixed", "q4_0", "q4_0_rtn"}
    measured = {"bits_per_byte", "agreement", "text_loss", "own_text_loss", "accuracy", "accuracy_change"}
    for figures in card.values():
        assert set(figures) == {"bits_per_byte", "size_bytes", "bits_per_weight", "agreement", "intervals"}
        assert set(figures["intervals"]) == measured
        for figure in figures["intervals"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
        assert figures["intervals"]["bits_per_byte"]["value"] == pytest.approx(figures["bits_per_byte"], abs=1e-5)
        assert figures["intervals"]["agreement"]["value"] == pytest.approx(figures["agreement"], abs=1e-5)
    nothing_lost = {key: card["original"]["intervals"][key]["value"] for key in ("text_loss", "own_text_loss")}
    assert nothing_lost == {"text_loss": 0, "own_text_loss": 0}
    assert {path.stem for path in (tmp_path / "a").iterdir()} == {"q8_0", "mixed", "q4_0", "q4_0_rtn"}
    assert card["q8_0"]["size_bytes"] == (tmp_path / "a/q8_0.gguf").stat().st_size
    # Matrices cost 8.5 bits a weight; the few norms stay fp32.
    assert 8.5 < card["q8_0"]["bits_per_weight"] < 8.7
    assert 4.5 < card["q4_0"]["bits_per_weight"] < card["q8_0"]["bits_per_weight"]
    assert card["q4_0"]["bits_per_weight"] == card["q4_0_rtn"]["bits_per_weight"]
    assert card["q8_0"]["agreement"] > 0.97
    assert card["q8_0"]["bits_per_byte"] == pytest.approx(card["original"]["bits_per_byte"], rel=0.01)
    assert card["q4_0"]["agreement"] > 0.7
    assert metrics["sample"]["positions"] == 400
    # The two four-bit files are compared on more held-out documents than the card is of; the rest is the card's.
    compensation = metrics["compensation"]
    assert {name: figure["n"] for name, figure in compensation.items()} == {
        "text": 16,
        "own_text": 12,
        "agreement": 400,
    }
    ours, plain = (card[name]["intervals"]["own_text_loss"]["value"] for name in ("q4_0", "q4_0_rtn"))
    assert compensation["own_text"]["value"] == pytest.approx(ours - plain, abs=3e-6)
    assert all(value > 0 for value in paths.cost.values())
    assert set(paths.cost) == {f"{kind}_scored_tokens_per_s" for kind in ("q8_0", "mixed", "q4_0", "q4_0_rtn")}

    again, _ = run(policy_inputs, tmp_path / "b")
    assert again == metrics
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_mixed_file_keeps_its_budget_and_the_embedding_may_be_four_bits(policy_inputs: dict[str, Path], tmp_path: Path):
    metrics, _ = run(policy_inputs, tmp_path, budget_bits=5.5, embedding="q4_0", own_tokens=8)
    kinds = {plan["kind"] for plan in metrics["sensitivity"].values()}
    assert kinds == {"q8_0", "q4_0"}
    assert 5 < metrics["card"]["mixed"]["bits_per_weight"] <= 5.5
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "mixed.gguf").tensors}
    for name, plan in metrics["sensitivity"].items():
        assert types[rename(name)] == GGMLQuantizationType[plan["kind"].upper()]
        assert plan["loss"] >= 0
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(tmp_path / "q4_0.gguf").tensors}
    assert kinds["token_embd.weight"] == GGMLQuantizationType.Q4_0


def test_a_budget_below_four_bits_is_named(policy_inputs: dict[str, Path], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"quantize\.budget_bits is 4\.5: q4_0 throughout takes 4\."):
        run(policy_inputs, tmp_path, budget_bits=4.5)


def test_the_seed_draws_other_calibration_documents(policy_inputs: dict[str, Path]):
    drawn = [read_texts(policy_inputs["data/clean"], "train", 8, salt=f"calibration {seed}") for seed in (1, 2)]
    assert set(drawn[0]) != set(drawn[1])
    assert drawn[0] == read_texts(policy_inputs["data/clean"], "train", 8, salt="calibration 1")


def test_no_held_out_text_is_named(policy_inputs: dict[str, Path], tmp_path: Path):
    write_rows(tmp_path / "documents.parquet", Document, [], {})
    tokenizer = Tokenizer.load(policy_inputs["models/policy"])
    model = load_model(policy_inputs["models/policy"])
    with pytest.raises(ConfigError, match="no held-out text"):
        quantize.draw_held(tmp_path, model, tokenizer, quantize.Params())
