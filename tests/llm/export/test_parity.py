"""Ids and scores of a packaged file where another program reads it, and what is said where they differ."""

import json
import os
import socket
from pathlib import Path

import pytest
from fontTools import unicodedata

from llm.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from llm.export.gguf import write_gguf
from llm.export.llamacpp import LlamaCppScorer
from llm.export.openvino import OpenVinoScorer
from llm.export.parity import compare_ids, compare_llamacpp, compare_scores, compare_tokenizers
from llm.export.sample import Sample, draw_sample, score_torch
from llm.export.scripts import compose_texts
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("GRISTMILL_SHARED_DATA") or ROOT / "../shared/data")
NAUGHTY = SHARED / "naughty-strings/blns.json"


def write_file(path: Path, tokenizer: Tokenizer, **shape: int) -> Transformer:
    sizes = {"hidden_size": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 32, "mlp_size": 64}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=96, **sizes))
    init_weights(model, 1)
    write_gguf(path, model, tokenizer, "f16")
    return model.eval()


@pytest.fixture(scope="module")
def worldly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    """A tokenizer with merges in every script, and a file that holds it."""
    texts = compose_texts(412)
    tokenizer = train_tokenizer(texts + (ROOT / "llm/config.py").read_text().splitlines() * 3, 3000)
    path = tmp_path_factory.mktemp("worldly") / "model.gguf"
    write_file(path, tokenizer)
    return tokenizer, path


def compare_all(tokenizer: Tokenizer, path: Path, texts: list[str]) -> dict[str, dict[str, object]]:
    openvino = OpenVinoScorer(path, vocab_size=tokenizer.vocab_size, context=96, threads=1)
    with LlamaCppScorer(path, context=96, threads=1) as llamacpp:
        return compare_tokenizers(tokenizer, texts, {"openvino": openvino.encode, "llamacpp": llamacpp.encode})


def test_texts_hold_every_script_and_are_always_the_same():
    texts = compose_texts(824)
    assert texts == compose_texts(824)
    assert len(set(texts)) == 824
    known = {unicodedata.script(chr(i)) for i in range(0x110000) if unicodedata.category(chr(i))[0] in "LMNPS"}
    assert len(known) > 150
    assert known == {unicodedata.script(character) for text in texts for character in text} - {"Zzzz"}


def test_ids_are_those_of_llamacpp_and_openvino(worldly: tuple[Tokenizer, Path]):
    assert compare_all(*worldly, compose_texts(103)) == dict.fromkeys(
        ("openvino", "llamacpp"), {"value": 1.0, "n": 103}
    )


@pytest.mark.slow
def test_ids_agree_on_two_thousand_documents(worldly: tuple[Tokenizer, Path]):
    code = [path.read_text(encoding="utf8") for path in sorted((ROOT / "llm").rglob("*.py"))]
    documents = [*compose_texts(2000), *code]
    if NAUGHTY.is_file():
        documents += [text for text in json.loads(NAUGHTY.read_text(encoding="utf8")) if text]
    documents = [text for text in documents if not any(text.count(special) for special in SPECIAL_TOKENS)]
    assert len(documents) > 2000
    for engine, found in compare_all(*worldly, documents).items():
        assert found == {"value": 1.0, "n": len(documents)}, engine


def test_openvino_drops_the_start_of_a_long_text(worldly: tuple[Tokenizer, Path]):
    """What the comparison leaves out, and why the server sends ids and never text."""
    tokenizer, path = worldly
    ids = tokenizer.encode("1 " * 5000)
    assert len(ids) == 10_000
    openvino = OpenVinoScorer(path, vocab_size=tokenizer.vocab_size, context=96, threads=1)
    assert openvino.encode(["1 " * 5000]) == [ids[-8192:]]
    assert openvino.encode(["<|im_end|>"]) == [[tokenizer.im_end_id]] != [tokenizer.encode("<|im_end|>")]


def test_another_split_pattern_is_noticed_and_described(worldly: tuple[Tokenizer, Path], tmp_path: Path):
    tokenizer, path = worldly
    content = path.read_bytes()
    assert content.count(b"qwen2") == 1
    (tmp_path / "other.gguf").write_bytes(content.replace(b"qwen2", b"gpt-2"))
    with LlamaCppScorer(tmp_path / "other.gguf", context=96, threads=1) as llamacpp:
        found = compare_tokenizers(tokenizer, ["plain", "def f(x):\n    return 12345"], {"llamacpp": llamacpp.encode})
    assert found["llamacpp"]["value"] == 0.5
    assert found["llamacpp"]["first"].startswith("text 1, token ")


def test_the_first_difference_is_located(tokenizer: Tokenizer):
    ours = [[260, 261], [262, 263, 264, 265, 266], [260]]
    found = compare_ids(tokenizer, ours, [[260, 261], [262, 263, 299], [260, 261]])
    assert (found["value"], found["n"]) == (0.333333, 3)
    assert (
        found["first"]
        == f"text 1, token 2: {tokenizer.decode([263, 264, 265, 266])!a} is {ours[1][1:]}, not [263, 299]"
    )
    longer = compare_ids(tokenizer, [[260]], [[260, 261]])
    assert longer["first"].endswith("is [260], not [260, 261]")


def test_figures_of_both_engines_are_the_models_own(worldly: tuple[Tokenizer, Path]):
    """The random model scores nearly alike everywhere, so the engines' figures must be close to the digit."""
    tokenizer, path = worldly
    model = write_file(path, tokenizer)
    sample = draw_sample(compose_texts(8), tokenizer, context=64, num_windows=8, num_positions=60)
    reference = score_torch(model, sample)
    openvino = OpenVinoScorer(path, vocab_size=tokenizer.vocab_size, context=96, threads=1)
    whole = compare_scores(sample, reference, openvino.score(sample.windows), openvino.next_tokens(sample.prefixes))
    with LlamaCppScorer(path, context=96, threads=1) as llamacpp:
        some = compare_llamacpp(sample, reference, llamacpp, tokenizer)
    assert abs(whole["difference"]) < 1e-4
    assert abs(some["difference"]) < 1e-3
    assert whole["n"] == 60
    assert 20 < some["n"] <= 60  # tokens that are no whole character have no score in llama.cpp
    # The negative control: the scores of other tokens are another figure.
    wrong = ([row[::-1] for row in reference[0]], [0] * 60)
    worse = compare_scores(sample, wrong, [[value * 1.01 for value in row] for row in reference[0]], reference[1])
    assert worse["difference"] == pytest.approx(0.01, abs=1e-6)
    assert worse["agreement"] < 0.5


def test_a_forced_target_has_the_models_probability(model: Transformer, tokenizer: Tokenizer, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", model, tokenizer, "f16")
    window = [tokenizer.eos_id, *tokenizer.encode("Return the first item of a list")]
    sample = Sample([window], 1, [(0, length) for length in range(1, len(window))])
    (logprobs,), greedy = score_torch(model, sample)
    with LlamaCppScorer(tmp_path / "model.gguf", context=96, threads=1) as llamacpp:
        found = llamacpp.score_next(sample.prefixes, window[1:])
        assert llamacpp.score_next([window], [300 if greedy[0] != 300 else 301])[0][1] < -0.5
        llamacpp._connection.sock.shutdown(socket.SHUT_RDWR)  # as the server does after seconds without a question
        assert llamacpp.next_tokens([window[:3]]) == greedy[2:3]
    assert [token for token, _ in found] == greedy
    assert [score for _, score in found] == pytest.approx(logprobs, abs=0.02)
