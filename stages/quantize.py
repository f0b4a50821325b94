"""Quantize: the policy -> 8-bit, 4-bit and mixed GGUF files, each measured against the original.

Four-bit codes are chosen with calibration text from the training split, block after block (`q4_0`), and by
llama.cpp's plain rule (`q4_0_rtn`, the control, of the same kinds). `mixed` gives eight bits to the matrices that need
them most, within `budget_bits`. All files are measured on the same held-out items through the engine that serves them,
the two of four bits on further documents too.
`base.seed` draws the calibration documents and the original's own text.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from gguf import GGUFReader
from pydantic import Field

from llm.config import StageParams, require
from llm.data.schema import Question, iter_rows
from llm.data.tokenizer import Tokenizer
from llm.evals.fidelity import Answers, Items, compare_levels, describe_level
from llm.evals.multiple_choice import Scorer, options_key, sample_questions, score_choices, split_credit
from llm.export.gguf import write_gguf
from llm.export.openvino import OpenVinoScorer
from llm.export.sample import Sample, agreement, bits_per_byte, draw_sample, read_texts, score_torch
from llm.infer.score import score
from llm.model.folder import load_model, to_hf_state
from llm.model.transformer import Transformer
from llm.progress import track
from llm.quant.blocks import BITS, Kind, Packed, pack_q4_0, round_q4_0
from llm.quant.calibration import collect_moments
from llm.quant.chain import round_in_order
from llm.quant.compensate import compensate
from llm.quant.own_text import OwnText, join_draws, write_own_text
from llm.quant.plan import plan_kinds
from llm.quant.sensitivity import measure_sensitivity
from stages.plumbing.stage import Paths, main

EMBEDDING = "model.embed_tokens.weight"
SIZES = ("size_bytes", "bits_per_weight")
PROMPT_TOKENS = 24  # of a document, before the original goes on by itself


class Params(StageParams):
    calibration: int = Field(128, ge=1, description="training documents from which input moments are taken")
    damping: float = Field(0.01, gt=0, description="share of the mean moment added against overfitting to them")
    embedding: Literal["q8_0", "q4_0"] = Field("q8_0", description="kind of the (un)embedding in the q4_0 files")
    budget_bits: float = Field(6.0, ge=4.5, le=9, description="bits per weight that the mixed file may take")
    sensitivity_windows: int = Field(4, ge=1, description="training windows on which matrices are rounded one by one")
    windows: int = Field(128, ge=1, description="held-out documents that every format is measured on")
    compared: int = Field(1280, ge=1, description="held-out documents on which compensated and plain q4_0 are compared")
    window_tokens: int = Field(256, ge=2, description="tokens of such a document at most")
    positions: int = Field(512, ge=400, description="held-out positions at which greedy next tokens are compared")
    own_tokens: int = Field(64, ge=1, description="tokens that the original writes after each document's beginning")
    own_draws: int = Field(2, ge=1, description="such texts per document")
    questions: int = Field(60, ge=1, description="most held-out multiple-choice questions that each format answers")


@dataclass(frozen=True)
class Held:
    """What every level is asked: held-out documents, the original's own text, questions; and more documents for two."""

    sample: Sample
    more: list[list[int]]
    own: OwnText
    questions: list[Question]
    items: Items


def run(params: Params, paths: Paths) -> dict[str, Any]:
    policy, clean, out = paths.deps["models/policy"], paths.deps["data/clean"], paths.outs["models/quantized"]
    model, tokenizer = load_model(policy).eval(), Tokenizer.load(policy)
    held = draw_held(clean, model, tokenizer, params)
    files, losses = quantize(model, tokenizer, clean, params)
    for name, packed in files.items():
        write_gguf(out / f"{name}.gguf", model, tokenizer, "q8_0" if name == "q8_0" else "q4_0", packed)
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    answers = {"original": answer_torch(model, tokenizer, held, params)}
    sizes = {"original": ((policy / "model.safetensors").stat().st_size, 32.0)}
    for name in track(list(files), "formats measured"):
        gguf = out / f"{name}.gguf"
        answers[name] = answer_file(gguf, model, tokenizer, held, params, paths.cost)
        sizes[name] = (gguf.stat().st_size, round(8 * tensor_bytes(gguf) / num_weights, 3))
    return {
        "card": {
            name: describe(one, answers["original"], held) | dict(zip(SIZES, sizes[name], strict=True))
            for name, one in answers.items()
        },
        "compensation": compare_rounding(out, answers, model, tokenizer, held, params),
        "sensitivity": {
            name: {"loss": round(loss, 7), "kind": files["mixed"][name].kind} for name, loss in losses.items()
        },
        "sample": {
            "documents": len(held.sample.windows),
            "bytes": held.sample.num_bytes,
            "own_bytes": sum(held.items.own_bytes),
            "positions": len(held.sample.positions),
            "questions": len(held.questions),
        },
        "embedding": params.embedding,
        "budget_bits": params.budget_bits,
    }


def describe(answers: Answers, original: Answers, held: Held) -> dict[str, Any]:
    """Return a level's figures; the two that other programs read stand alone, and with the others in `intervals`."""
    return {
        "bits_per_byte": round(bits_per_byte(answers.text, held.sample.num_bytes), 5),
        "agreement": round(agreement(answers.greedy, original.greedy), 5),
        "intervals": describe_level(answers, original, held.items),
    }


def compare_rounding(
    folder: Path, answers: dict[str, Answers], model: Transformer, tokenizer: Tokenizer, held: Held, params: Params
) -> dict[str, Any]:
    """Return what compensation changes against plain rounding, for the held-out text from more documents.

    On given text rounding errors count to first order (`llm.quant.own_text`): a few documents settle nothing.
    """
    ours, theirs = (
        replace(answers[name], text=open_scorer(folder / f"{name}.gguf", model, params).score(held.more))
        for name in track(["q4_0", "q4_0_rtn"], "files compared")
    )
    items = replace(held.items, text_bytes=count_bytes(tokenizer, [window[1:] for window in held.more]))
    return compare_levels(ours, theirs, answers["original"], items)


def quantize(
    model: Transformer, tokenizer: Tokenizer, clean: Path, params: Params
) -> tuple[dict[str, Mapping[str, Packed]], dict[str, float]]:
    """Return the packed matrices of each file, by Hugging Face name, and what each alone loses in q4_0."""
    texts = read_texts(clean, "train", params.calibration, salt=f"calibration {params.base.seed}")
    windows_NT = draw_windows(texts, tokenizer, min(params.window_tokens, model.config.context))
    moments = collect_moments(model, windows_NT)
    state = to_hf_state(model)
    matrices = {name: tensor.numpy() for name, tensor in state.items() if tensor.ndim == 2}
    # The look-up of an embedding meets each row alone; only as unembedding has it inputs to keep outputs close on.
    alone: dict[Kind, dict[str, Packed]] = {
        kind: {
            name: compensate(kind, weight, moments[name], params.damping)
            for name, weight in track(list(matrices.items()), f"matrices rounded to {kind}")
        }
        for kind in BITS
    }
    plain = {name: pack_q4_0(*round_q4_0(weight)) for name, weight in matrices.items()}
    seen_NT = windows_NT[: params.sensitivity_windows]
    num_bytes = sum(count_bytes(tokenizer, seen_NT[:, 1:].tolist()))
    losses = measure_sensitivity(model, seen_NT, num_bytes, alone["q4_0"])
    counts = {name: weight.size for name, weight in matrices.items()}
    num_other = sum(tensor.numel() for tensor in state.values()) - sum(counts.values())
    kinds = plan_kinds(losses, counts, params.budget_bits, num_other)
    fours: dict[str, Kind] = dict.fromkeys(matrices, "q4_0")
    fours |= dict.fromkeys(matrices.keys() & {EMBEDDING, "lm_head.weight"}, params.embedding)
    files: dict[str, Mapping[str, Packed]] = {"q8_0": alone["q8_0"]}
    for file, plan in (("mixed", kinds), ("q4_0", fours)):
        taken = {name: alone[kind][name] for name, kind in plan.items()}
        files[file] = taken | round_in_order(model, windows_NT, taken[EMBEDDING], plan, params.damping)
    kept = {name: files["q4_0"][name] for name, kind in fours.items() if kind == "q8_0"}
    return files | {"q4_0_rtn": plain | kept}, losses


def draw_windows(texts: list[str], tokenizer: Tokenizer, width: int) -> torch.Tensor:
    """Return the documents as one stream, as in training, cut into rows; the remainder is left out."""
    stream = [token for ids in tokenizer.encode_batch(texts) for token in (tokenizer.eos_id, *ids)]
    require(bool(stream), "data/clean holds no training text to calibrate on")
    width = min(width, len(stream))
    return torch.tensor(stream[: len(stream) // width * width]).view(-1, width)


def draw_held(clean: Path, model: Transformer, tokenizer: Tokenizer, params: Params) -> Held:
    """Return what all levels are asked."""
    context = min(model.config.context, params.window_tokens)
    texts = read_texts(clean, "val", max(params.windows, params.compared))
    sample, more = (
        draw_sample(texts, tokenizer, context=context, num_windows=count, num_positions=positions)
        for count, positions in ((params.windows, params.positions), (params.compared, 0))
    )
    new_tokens = min(params.own_tokens, context // 2)
    own = write_own_text(
        model,
        sample.windows,
        prompt_tokens=min(PROMPT_TOKENS, context - new_tokens),
        new_tokens=new_tokens,
        draws=params.own_draws,
        stop_ids=(tokenizer.im_end_id, tokenizer.eos_id),
        seed=params.base.seed,
    )
    rows = (row for row in iter_rows(clean / "questions.parquet") if row.pop("split") == "val")
    questions = sample_questions([Question(**row) for row in rows], params.questions)
    own_bytes = count_bytes(tokenizer, [ids[start:] for ids, start in zip(own.sequences, own.starts, strict=True)])
    items = Items(
        count_bytes(tokenizer, [window[1:] for window in sample.windows]),
        # An answer that ends at once stands for no byte; its bits count, over one byte.
        [max(1, sum(own_bytes[first :: len(sample.windows)])) for first in range(len(sample.windows))],
        [window for window, _ in sample.positions],
        [options_key(question) for question in questions],
    )
    return Held(sample, more.windows, own, questions, items)


def count_bytes(tokenizer: Tokenizer, rows: Sequence[Sequence[int]]) -> list[int]:
    """Return how many bytes of text the tokens of each row stand for."""
    sizes = [len(piece) for piece in tokenizer.token_bytes()]
    return [sum(sizes[token] for token in row) for row in rows]


def answer_torch(model: Transformer, tokenizer: Tokenizer, held: Held, params: Params) -> Answers:
    """Let the original answer, in torch."""
    text, greedy = score_torch(model, held.sample)
    credit = answer_questions(partial(score, model), model.config.context, tokenizer, held.questions)
    return Answers(text, join_draws(held.own.logprobs, params.own_draws), greedy, credit)


def answer_file(
    gguf: Path, model: Transformer, tokenizer: Tokenizer, held: Held, params: Params, cost: dict[str, float | str]
) -> Answers:
    """Let a file answer through OpenVINO; its speed goes to the run's cost."""
    scorer = open_scorer(gguf, model, params)
    sequences = [*held.sample.windows, *held.own.sequences]
    started = time.monotonic()
    scores = scorer.score(sequences)
    cost[f"{gguf.stem}_scored_tokens_per_s"] = round(sum(map(len, sequences)) / (time.monotonic() - started), 1)

    def score_from(asked: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        return [row[start - 1 :] for row, start in zip(scorer.score(asked), starts, strict=True)]

    text, own = scores[: len(held.sample.windows)], scores[len(held.sample.windows) :]
    own = [row[start - 1 :] for row, start in zip(own, held.own.starts, strict=True)]
    credit = answer_questions(score_from, model.config.context, tokenizer, held.questions)
    return Answers(text, join_draws(own, params.own_draws), scorer.next_tokens(held.sample.prefixes), credit)


def open_scorer(gguf: Path, model: Transformer, params: Params) -> OpenVinoScorer:
    """Open a file in the engine that serves it."""
    config = model.config
    return OpenVinoScorer(gguf, vocab_size=config.vocab_size, context=config.context, threads=params.base.threads)


def answer_questions(scorer: Scorer, context: int, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[float]:
    """Return the credit for each question."""
    if not questions:
        return []
    scores, *_ = score_choices(scorer, context, tokenizer, questions)
    return split_credit(scores, [question.answer for question in questions])


def tensor_bytes(gguf: Path) -> int:
    """Return the bytes that a file spends on weights (the rest is vocabulary and metadata)."""
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(gguf).tensors)


if __name__ == "__main__":
    main(Params, run)
