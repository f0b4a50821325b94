"""Quantize: the policy -> 8-bit and 4-bit GGUF files, each measured against the original.

Four-bit codes are chosen with calibration text from the training split (`q4_0`) and by llama.cpp's plain rule
(`q4_0_rtn`, the yardstick). All files are measured on one held-out sample through the engine that serves them.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from gguf import GGUFReader
from pydantic import Field

from llm.config import StageParams, require
from llm.data.tokenizer import Tokenizer
from llm.export.gguf import write_gguf
from llm.export.openvino import OpenVinoScorer
from llm.export.sample import Sample, agreement, bits_per_byte, draw_sample, read_texts, score_torch
from llm.model.folder import load_model, to_hf_state
from llm.model.transformer import Transformer
from llm.progress import track
from llm.quant.blocks import Packed, join_q8_0, pack_q4_0, round_q4_0
from llm.quant.calibration import collect_moments
from llm.quant.compensate import compensate_q4_0, compensate_q8_0
from stages.plumbing.stage import Paths, main

EMBEDDING = "model.embed_tokens.weight"


class Params(StageParams):
    calibration: int = Field(64, ge=1, description="training documents from which input moments are taken")
    damping: float = Field(0.01, gt=0, description="share of the mean moment added against overfitting to them")
    embedding: Literal["q8_0", "q4_0"] = Field("q8_0", description="kind of the (un)embedding in the q4_0 files")
    windows: int = Field(128, ge=1, description="held-out documents that every format is measured on")
    window_tokens: int = Field(256, ge=2, description="tokens of such a document at most")
    positions: int = Field(512, ge=400, description="held-out positions at which greedy next tokens are compared")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    model = load_model(paths.deps["models/policy"]).eval()
    tokenizer = Tokenizer.load(paths.deps["models/policy"])
    clean, out = paths.deps["data/clean"], paths.outs["models/quantized"]
    for name, packed in quantize(model, tokenizer, clean, params).items():
        write_gguf(out / f"{name}.gguf", model, tokenizer, "q8_0" if name == "q8_0" else "q4_0", packed)
    sample = draw_held_out(clean, tokenizer, model.config.context, params)
    logprobs, greedy = score_torch(model, sample)
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    card = {
        "original": {
            "bits_per_byte": round(bits_per_byte(logprobs, sample.num_bytes), 5),
            "size_bytes": (paths.deps["models/policy"] / "model.safetensors").stat().st_size,
            "bits_per_weight": 32.0,
            "agreement": 1.0,
        }
    }
    for name in track(("q8_0", "q4_0", "q4_0_rtn"), "formats measured"):
        card[name] = measure_file(out / f"{name}.gguf", model, sample, greedy, params, paths.cost)
        card[name]["bits_per_weight"] = round(8 * tensor_bytes(out / f"{name}.gguf") / num_weights, 3)
    return {
        "card": card,
        "sample": {
            "documents": len(sample.windows),
            "bytes": sample.num_bytes,
            "positions": len(sample.positions),
        },
        "embedding": params.embedding,
    }


def quantize(model: Transformer, tokenizer: Tokenizer, clean: Path, params: Params) -> dict[str, Mapping[str, Packed]]:
    """Return the packed matrices of each file, by Hugging Face name."""
    texts = read_texts(clean, "train", params.calibration)
    moments = collect_moments(model, draw_windows(texts, tokenizer, min(params.window_tokens, model.config.context)))
    matrices = {name: tensor.numpy() for name, tensor in to_hf_state(model).items() if tensor.ndim == 2}
    # The look-up of an embedding meets each row alone; only as unembedding has it inputs to keep outputs close on.
    q8_0 = {
        name: join_q8_0(*compensate_q8_0(weight, moments[name], params.damping))
        for name, weight in track(list(matrices.items()), "matrices rounded to 8 bits")
    }
    rounded = {name: pack_q4_0(*round_q4_0(weight)) for name, weight in matrices.items()}
    compensated = {
        name: pack_q4_0(*compensate_q4_0(weight, moments[name], params.damping))
        for name, weight in track(list(matrices.items()), "matrices rounded to 4 bits")
    }
    kept = {name: q8_0[name] for name in (EMBEDDING, "lm_head.weight") if name in q8_0 and params.embedding == "q8_0"}
    return {"q8_0": q8_0, "q4_0": {**compensated, **kept}, "q4_0_rtn": {**rounded, **kept}}


def draw_windows(texts: list[str], tokenizer: Tokenizer, width: int) -> torch.Tensor:
    """Return the documents as one stream, as in training, cut into rows; the remainder is left out."""
    stream = [token for ids in tokenizer.encode_batch(texts) for token in (tokenizer.eos_id, *ids)]
    require(bool(stream), "data/clean holds no training text to calibrate on")
    width = min(width, len(stream))
    return torch.tensor(stream[: len(stream) // width * width]).view(-1, width)


def draw_held_out(clean: Path, tokenizer: Tokenizer, context: int, params: Params) -> Sample:
    """Return the sample that quantize and package measure on."""
    return draw_sample(
        read_texts(clean, "val", params.windows),
        tokenizer,
        context=min(context, params.window_tokens),
        num_windows=params.windows,
        num_positions=params.positions,
    )


def measure_file(
    gguf: Path, model: Transformer, sample: Sample, greedy: list[int], params: Params, cost: dict[str, float | str]
) -> dict[str, float]:
    """Return a file's figures through OpenVINO; its speed goes to the run's cost."""
    config = model.config
    scorer = OpenVinoScorer(gguf, vocab_size=config.vocab_size, context=config.context, threads=params.base.threads)
    started = time.monotonic()
    logprobs = scorer.score(sample.windows)
    num_tokens = sum(len(window) for window in sample.windows)
    cost[f"{gguf.stem}_scored_tokens_per_s"] = round(num_tokens / (time.monotonic() - started), 1)
    return {
        "bits_per_byte": round(bits_per_byte(logprobs, sample.num_bytes), 5),
        "agreement": round(agreement(scorer.next_tokens(sample.prefixes), greedy), 5),
        "size_bytes": gguf.stat().st_size,
    }


def tensor_bytes(gguf: Path) -> int:
    """Return the bytes that a file spends on weights (the rest is vocabulary and metadata)."""
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(gguf).tensors)


if __name__ == "__main__":
    main(Params, run)
