"""GGUF files: what they say, and that both engines that must read them compute what torch computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

from llm.config import ConfigError
from llm.data.tokenizer import Tokenizer, adopt_tokenizer
from llm.export.gguf import write_gguf
from llm.export.llamacpp import LlamaCppScorer
from llm.export.openvino import OpenVinoScorer
from llm.export.sample import Sample, agreement, bits_per_byte, draw_sample, score_torch
from llm.infer.score import score
from llm.model.folder import from_hf_state, load_model, to_hf_state
from llm.model.transformer import Transformer, init_weights
from llm.quant.blocks import pack_q4_0, pack_q8_0, round_q4_0, unpack
from tests.qwen3 import write_qwen3, write_tokenizer

HELD_OUT = [
    f"Return the {n} of the largest window, or the last value of a list.\n\nArgs: {n}s." for n in "abcdefghijkl"
]


@pytest.fixture(scope="module")
def sample(tokenizer: Tokenizer) -> Sample:
    return draw_sample(HELD_OUT, tokenizer, context=64, num_windows=12, num_positions=120)


@pytest.fixture(scope="module")
def files(model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("gguf")
    matrices = {name: tensor.numpy() for name, tensor in to_hf_state(model).items() if tensor.ndim == 2}
    q8_0 = {name: pack_q8_0(weight) for name, weight in matrices.items()}
    q4_0 = {name: pack_q4_0(*round_q4_0(weight)) for name, weight in matrices.items()}
    mixed = {**q4_0, "model.embed_tokens.weight": q8_0["model.embed_tokens.weight"]}
    write_gguf(out / "f16.gguf", model, tokenizer, "f16")
    write_gguf(out / "q8_0.gguf", model, tokenizer, "q8_0", q8_0)
    write_gguf(out / "q4_0.gguf", model, tokenizer, "q4_0", q4_0)
    write_gguf(out / "mixed.gguf", model, tokenizer, "q4_0", mixed)
    return {path.stem: path for path in out.iterdir()}


def test_file_says_what_readers_need(files: dict[str, Path], model: Transformer, tokenizer: Tokenizer):
    reader = GGUFReader(files["q8_0"])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert fields["general.file_type"] == 7
    assert fields["qwen3.attention.key_length"] == fields["qwen3.attention.value_length"] == 32
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.im_end_id
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.add_bos_token"]) == (tokenizer.eos_id, False)
    types = fields["tokenizer.ggml.token_type"]
    special = {tokenizer.eos_id, tokenizer.im_start_id, tokenizer.im_end_id}
    assert {i for i, kind in enumerate(types) if kind == 3} == special
    tensors = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert "output.weight" not in tensors  # tied
    assert tensors["token_embd.weight"] == GGMLQuantizationType.Q8_0
    assert tensors["blk.1.attn_k_norm.weight"] == GGMLQuantizationType.F32
    assert len(tensors) == len(to_hf_state(model))


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0", "mixed"])
def test_engines_agree_with_torch(name: str, files: dict[str, Path], model: Transformer, sample: Sample):
    logprobs, greedy = score_torch(model, sample)
    openvino = OpenVinoScorer(files[name], vocab_size=model.config.vocab_size, context=96, threads=1)
    found = openvino.score(sample.windows)
    bits = bits_per_byte(logprobs, sample.num_bytes)
    # Measured 0.02 % for f16 and q8_0 and 1 % for q4_0; the bounds leave room for another CPU's sums.
    assert bits_per_byte(found, sample.num_bytes) == pytest.approx(bits, rel=2e-3 if name in ("f16", "q8_0") else 0.05)
    with LlamaCppScorer(files[name], context=96, threads=1) as llamacpp:
        engines = [openvino.next_tokens(sample.prefixes), llamacpp.next_tokens(sample.prefixes)]
    for tokens in engines:
        assert agreement(tokens, greedy) >= {"f16": 0.99, "q8_0": 0.97}.get(name, 0.7)
    if name == "f16":
        gap = max(
            abs(a - b) for ours, theirs in zip(logprobs, found, strict=True) for a, b in zip(ours, theirs, strict=True)
        )
        assert gap < 0.02  # f16 weights; 0.004 measured


def test_blocks_mean_to_the_engine_what_they_mean_here(files: dict[str, Path], model: Transformer, sample: Sample):
    matrices = {name: tensor.numpy() for name, tensor in to_hf_state(model).items()}
    read_back = {
        name: torch.from_numpy(unpack(pack_q4_0(*round_q4_0(weight))) if weight.ndim == 2 else weight)
        for name, weight in matrices.items()
    }
    rounded = Transformer(model.config).eval()
    rounded.load_state_dict(from_hf_state(read_back, model.config))
    logprobs, _ = score_torch(rounded, sample)
    original, _ = score_torch(model, sample)
    scorer = OpenVinoScorer(files["q4_0"], vocab_size=model.config.vocab_size, context=96, threads=1, exact=True)
    found = np.concatenate(scorer.score(sample.windows))
    assert found == pytest.approx(np.concatenate(logprobs), abs=0.01)
    # The negative control: rounding to four bits moved the figures much further than that.
    assert np.abs(found - np.concatenate(original)).max() > 0.1


def test_scores_repeat_and_do_not_depend_on_step_size(files: dict[str, Path], model: Transformer, sample: Sample):
    # Exact: in the fast mode a prompt that two steps share reads its own 8-bit cache (0.04 nats measured).
    scorer = OpenVinoScorer(files["q8_0"], vocab_size=model.config.vocab_size, context=96, threads=1, exact=True)
    many = sample.windows * 8  # more than one engine step
    first = scorer.score(many)
    assert first == scorer.score(many)
    assert np.concatenate(first[:12]) == pytest.approx(np.concatenate(first[-12:]), abs=1e-3)


def test_answers_are_sampled_from_the_model(files: dict[str, Path], model: Transformer, tokenizer: Tokenizer):
    scorer = OpenVinoScorer(files["f16"], vocab_size=model.config.vocab_size, context=96, threads=1, exact=True)
    prompt = [tokenizer.eos_id, *tokenizer.encode("Return the ")]
    stop = tokenizer.encode(".")[-1]
    settings = {"max_new_tokens": 24, "stop_ids": (stop,), "seed": 5}
    answers = scorer.generate([prompt] * 40, **settings)
    assert scorer.generate([prompt] * 40, **settings) == answers
    assert scorer.generate([prompt] * 3, **settings) == answers[:3]  # a seed of its own for each prompt
    assert scorer.generate([prompt] * 40, max_new_tokens=24, stop_ids=(stop,), seed=4)[1:] == answers[:-1]
    assert len({tuple(tokens) for tokens, _, _ in answers}) > 10
    # Drawn with the model's own probabilities, without truncation: their mean is the entropy, which greedy's is not.
    theirs = score(model, [prompt + tokens for tokens, _, _ in answers], [len(prompt)] * 40)
    for (tokens, logprobs, finish), expected in zip(answers, theirs, strict=True):
        assert logprobs == pytest.approx(expected, abs=0.02)
        assert finish == ("stop" if tokens[-1] == stop else "length")
        assert stop not in tokens[:-1]
        assert len(tokens) == 24 or finish == "stop"
    first = torch.tensor(
        [tokens[0] for tokens, _, _ in scorer.generate([prompt] * 400, **settings | {"max_new_tokens": 1})]
    )
    p_V = model.unembed(model(torch.tensor([prompt])))[0, -1].detach().softmax(dim=-1)
    likely = int(p_V.argmax())
    spread = (p_V[likely] * (1 - p_V[likely]) / 400).sqrt()
    assert float((first == likely).float().mean() - p_V[likely]) == pytest.approx(0.0, abs=float(4 * spread) + 1e-3)
    with pytest.raises(ValueError, match="1 to 72"):
        scorer.generate([[1] * 73], **settings)


def test_same_model_same_bytes(files: dict[str, Path], model: Transformer, tokenizer: Tokenizer, tmp_path: Path):
    write_gguf(tmp_path / "again.gguf", model, tokenizer, "f16")
    assert (tmp_path / "again.gguf").read_bytes() == files["f16"].read_bytes()


def test_untied_and_padded_vocabulary(model: Transformer, tokenizer: Tokenizer, tmp_path: Path):
    config = model.config.model_copy(update={"tie_embeddings": False, "vocab_size": tokenizer.vocab_size + 8})
    untied = Transformer(config)
    init_weights(untied, 3)
    write_gguf(tmp_path / "untied.gguf", untied, tokenizer, "f16")
    assert "lm_head.weight" in to_hf_state(untied)
    windows = [[tokenizer.eos_id, *tokenizer.encode(HELD_OUT[0])]]
    sample = Sample(windows, 1, [(0, len(windows[0]))])
    logprobs, _ = score_torch(untied, sample)
    scorer = OpenVinoScorer(tmp_path / "untied.gguf", vocab_size=config.vocab_size, context=96, threads=1)
    assert scorer.score(windows)[0] == pytest.approx(logprobs[0], abs=0.02)


def test_faults_are_named(files: dict[str, Path], model: Transformer, tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match="needs every matrix packed.*embed_tokens"):
        write_gguf(tmp_path / "x.gguf", model, tokenizer, "q8_0", {})
    small = Transformer(model.config.model_copy(update={"vocab_size": 300}))
    with pytest.raises(ConfigError, match="300 embeddings"):
        write_gguf(tmp_path / "x.gguf", small, tokenizer, "f16")
    scorer = OpenVinoScorer(files["f16"], vocab_size=400, context=96, threads=1)
    with pytest.raises(ValueError, match="token id 400"):
        scorer.score([[0, 400]])
    with pytest.raises(ValueError, match="97 tokens"):
        scorer.next_tokens([[1] * 97])


def test_another_models_tokenizer_and_padded_rows(tmp_path: Path):
    """Its special tokens are CONTROL (3), its phrase USER_DEFINED (4), rows beyond it UNUSED (5)."""
    write_qwen3(tmp_path)
    write_tokenizer(tmp_path)
    write_gguf(tmp_path / "a.gguf", load_model(tmp_path), adopt_tokenizer(tmp_path), "f16")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "a.gguf").fields.items()}
    types = fields["tokenizer.ggml.token_type"]
    assert len(types) == len(fields["tokenizer.ggml.tokens"]) == 320
    assert types == [1] * 297 + [3] * 4 + [4] + [5] * 18
    assert fields["tokenizer.ggml.tokens"][300:303] == ["<|fim|>", "<think>", "[PAD302]"]
