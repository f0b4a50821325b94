"""Package: everything made so far -> a release that can be served, checked and traced to its inputs.

The gate is measured on the files as packaged. A failed gate still packages; `release.json` says so.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from llm.config import StageParams
from llm.data.schema import Question, iter_rows
from llm.data.tokenizer import Tokenizer
from llm.evals.multiple_choice import choose_options, sample_questions
from llm.evals.statistics import Interval, as_metrics
from llm.export.card import write_card
from llm.export.gate import Bounds, Served, check_release, gate_metrics
from llm.export.hub import compare_logits, compare_tokens, copy_folder
from llm.export.lineage import describe_corpus, describe_start, read_stages
from llm.export.llamacpp import LlamaCppScorer
from llm.export.openvino import OpenVinoScorer
from llm.export.sample import Sample, agreement, bits_per_byte, draw_sample, read_texts, score_torch
from llm.export.verify import release_hash, write_sums
from llm.model.folder import load_model, read_config
from stages.plumbing.stage import Paths, main

log = logging.getLogger(__name__)

NAME = "gristmill"
LOCK = Path("dvc.lock")
SERVED = "gguf/model-q8_0.gguf"
SMALLER = "gguf/model-q4_0.gguf"


class Params(StageParams):
    windows: int = Field(128, ge=1, description="held-out documents that the packaged files are measured on")
    window_tokens: int = Field(256, ge=2, description="tokens of such a document at most")
    positions: int = Field(400, ge=400, description="held-out positions at which greedy next tokens are compared")
    questions: int = Field(400, ge=4, description="most held-out questions that the served file answers")
    agreement: float = Field(0.97, ge=0, le=1, description="gate: share of equal greedy tokens of the served file")
    bits_loss: float = Field(0.01, ge=0, description="gate: relative loss of bits per byte in the served file")
    length_change: float = Field(0.2, gt=0, description="gate: relative change of answer length from sft to policy")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    out, clean = paths.outs["models/release"], paths.deps["data/clean"]
    evaluation = read_metrics(paths.deps["reports/evaluate.json"])
    quantization = read_metrics(paths.deps["reports/quantize.json"])
    copy_folder(paths.deps["models/policy"], out / "hf")
    (out / "gguf").mkdir()
    for name, target in (("q8_0.gguf", SERVED), ("q4_0.gguf", SMALLER)):
        shutil.copyfile(paths.deps["models/quantized"] / name, out / target)
    corpus = describe_corpus(clean)
    lineage = {"stages": read_lock(paths), "corpus": corpus}
    write_json(out / "lineage.json", lineage | describe_start(params.base.init_from))
    release = release_hash(out)

    served, measured = measure_release(out, clean, params)
    bounds = Bounds(params.agreement, bits_loss=params.bits_loss, length_change=params.length_change)
    checks = check_release(evaluation, served, bounds)
    for check in checks:
        log.log(logging.INFO if check.passed else logging.WARNING, "gate | %s", check)
    gate = gate_metrics(checks)
    config = read_config(out / "hf")
    card = write_card(NAME, release, config, evaluation, quantization, corpus, checks, params.base.init_from)
    (out / "README.md").write_text(card, encoding="utf8")
    about = {"release": release, "gate": gate, "served": SERVED, "context": config.context, "model": NAME}
    write_json(out / "release.json", about)
    write_sums(out)
    return {"release": release, "gate": gate, "served": measured}


def measure_release(out: Path, clean: Path, params: Params) -> tuple[Served, dict[str, Any]]:
    """Return the figures that the gate judges, and all that was measured on the packaged files."""
    model = load_model(out / "hf").eval()
    tokenizer = Tokenizer.load(out / "hf")
    sample = draw_sample(
        read_texts(clean, "val", params.windows),
        tokenizer,
        context=min(model.config.context, params.window_tokens),
        num_windows=params.windows,
        num_positions=params.positions,
    )
    logprobs, greedy = score_torch(model, sample)
    original_bits = bits_per_byte(logprobs, sample.num_bytes)
    engines = measure_engines(out, sample, greedy, params)
    served_bits, choice = measure_served(out, clean, tokenizer, sample, params)
    gap, same = measure_parity(out / "hf", clean, sample, params)
    served = Served(
        original_bits=original_bits,
        served_bits=served_bits,
        choice_low=None if choice is None else choice.low,
        agreement_openvino=engines["q8_0"]["openvino"],
        agreement_llamacpp=engines["q8_0"]["llamacpp"],
        logit_gap=gap,
        same_tokens=same,
    )
    figures = {name: None if value is None else round(value, 6) for name, value in asdict(served).items()}
    answered = None if choice is None else as_metrics(choice, "accuracy")
    return served, {**figures, "agreement": engines, "multiple_choice": answered}


def measure_engines(out: Path, sample: Sample, greedy: Sequence[int], params: Params) -> dict[str, dict[str, float]]:
    """Return each file's agreement with the fp32 model in each engine that must read it."""
    config = read_config(out / "hf")
    found: dict[str, dict[str, float]] = {}
    for kind, name in (("q8_0", SERVED), ("q4_0", SMALLER)):
        openvino = open_scorer(out / name, out / "hf", params)
        with LlamaCppScorer(out / name, context=config.context, threads=params.base.threads) as llamacpp:
            engines = {"openvino": openvino.next_tokens, "llamacpp": llamacpp.next_tokens}
            found[kind] = {
                engine: round(agreement(next_tokens(sample.prefixes), greedy), 5)
                for engine, next_tokens in engines.items()
            }
    return found


def measure_served(
    out: Path, clean: Path, tokenizer: Tokenizer, sample: Sample, params: Params
) -> tuple[float, Interval | None]:
    """Return bits per byte on the sample and multiple choice (None without questions) of the served file."""
    scorer = open_scorer(out / SERVED, out / "hf", params)
    bits = bits_per_byte(scorer.score(sample.windows), sample.num_bytes)
    rows = (row for row in iter_rows(clean / "questions.parquet") if row.pop("split") == "val")
    questions = sample_questions([Question(**row) for row in rows], params.questions)
    if not questions:
        return bits, None

    def score(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        return [row[start - 1 :] for row, start in zip(scorer.score(sequences), starts, strict=True)]

    return bits, choose_options(score, scorer.context, tokenizer, questions).information


def measure_parity(hf: Path, clean: Path, sample: Sample, params: Params) -> tuple[float, float]:
    """Return transformers' largest difference of a logit, and the share of texts and chats with equal ids."""
    rows = (row for row in iter_rows(clean / "conversations.parquet") if row["split"] == "val")
    chats = [row["messages"] for row, _ in zip(rows, range(params.windows), strict=False)]
    texts = read_texts(clean, "val", params.windows)
    return compare_logits(hf, sample.windows[:4]), compare_tokens(hf, texts, chats)


def open_scorer(gguf: Path, hf: Path, params: Params) -> OpenVinoScorer:
    config = read_config(hf)
    return OpenVinoScorer(gguf, vocab_size=config.vocab_size, context=config.context, threads=params.base.threads)


def read_lock(paths: Paths) -> dict[str, Any]:
    """Return what dvc.lock says of the stages that made the inputs of this one."""
    if not LOCK.is_file():
        log.warning("%s is missing: lineage.json names no stages; run this stage through `dvc repro`", LOCK)
        return {}
    return read_stages(yaml.safe_load(LOCK.read_text(encoding="utf8")), paths.deps, paths.sources)


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the metrics of a stage's report."""
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))["metrics"]
    return metrics


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf8")


if __name__ == "__main__":
    main(Params, run)
