"""Package: everything made so far -> a release that can be served, checked and traced to its inputs.

The gate is measured on the files as packaged. A failed gate still packages; `release.json` says so.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from llm.config import StageParams
from llm.data.schema import Question, hash_id, iter_rows
from llm.data.tokenizer import Tokenizer
from llm.evals.alignment import answer_prompts
from llm.evals.asked import Said, choose_prompts
from llm.evals.discrimination import MIN_AUROC
from llm.evals.multiple_choice import measure_accuracy, options_key, sample_questions, score_choices, split_credit
from llm.evals.served import measure_answers
from llm.evals.statistics import as_metrics
from llm.export.card import PackagedFile, write_card, write_modelfile
from llm.export.gate import Bounds, check_release, gate_metrics
from llm.export.gguf import write_gguf
from llm.export.hub import compare_logits, compare_tokens, copy_folder, score_hub
from llm.export.lineage import describe_corpus, describe_start, read_stages
from llm.export.llamacpp import LlamaCppScorer
from llm.export.openvino import OpenVinoScorer
from llm.export.parity import compare_llamacpp, compare_scores, compare_tokenizers
from llm.export.sample import draw_sample, read_texts, score_torch
from llm.export.sbom import SBOM, describe_materials
from llm.export.scripts import compose_texts
from llm.export.verify import release_hash, write_sums
from llm.infer.generate import Completion
from llm.model.folder import load_model, read_config
from llm.model.transformer import Transformer
from llm.rl.reward_model import PRINCIPLES, RewardModel
from stages.plumbing.stage import Paths, main

log = logging.getLogger(__name__)

NAME = "gristmill"
LOCK = Path("dvc.lock")
SERVED = "gguf/model-q8_0.gguf"
FILES = {"f16": "gguf/model-f16.gguf", "q8_0": SERVED, "q4_0": "gguf/model-q4_0.gguf"}
ITEMS = "items.json"


class Params(StageParams):
    windows: int = Field(128, ge=1, description="held-out documents that the packaged files are measured on")
    window_tokens: int = Field(256, ge=2, description="tokens of such a document at most")
    positions: int = Field(400, ge=400, description="held-out positions at which greedy next tokens are compared")
    questions: int = Field(400, ge=4, description="most held-out questions that the served file answers")
    prompts: int = Field(
        400,
        ge=2,
        description="held-out prompts that the served file answers; harmless ones and principles' come on top",
    )
    texts: int = Field(250, ge=0, description="composed texts of every script on which readers' token ids are compared")
    bounds: Bounds = Field(Bounds(), description="what a release must reach")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    out, clean = paths.outs["models/release"], paths.deps["data/clean"]
    evaluation = read_metrics(paths.deps["reports/evaluate.json"])
    quantization = read_metrics(paths.deps["reports/quantize.json"])
    copy_folder(paths.deps["models/policy"], out / "hf")
    (out / "gguf").mkdir()
    for kind in ("q8_0", "q4_0"):
        shutil.copyfile(paths.deps["models/quantized"] / f"{kind}.gguf", out / FILES[kind])
    policy = load_model(out / "hf").eval()
    write_gguf(out / FILES["f16"], policy, Tokenizer.load(out / "hf"), "f16", name=NAME)
    corpus = describe_corpus(clean)
    lineage = {"stages": read_lock(paths), "corpus": corpus}
    write_json(out / "lineage.json", lineage | describe_start(params.base.init_from))
    release = release_hash(out)

    served = measure_files(out, policy, clean, params)
    choice, questions = measure_choice(out, clean, params)
    alignment, prompts = measure_alignment(out, paths, params, evaluation)
    served |= {"multiple_choice": choice, **alignment}
    judge = release_hash(paths.deps["models/reward"] / "second")
    write_json(out / ITEMS, {"judge": judge, "questions": questions, "prompts": prompts})
    checks = check_release(evaluation, served, params.bounds, PRINCIPLES, MIN_AUROC)
    for check in checks:
        log.log(logging.INFO if check.passed else logging.WARNING, "gate | %s", check)
    gate = gate_metrics(checks)
    config = read_config(out / "hf")
    places = {"hf": "hf/model.safetensors", **FILES}
    files = [PackagedFile(kind, at, (out / at).stat().st_size, served["formats"][kind]) for kind, at in places.items()]
    start = params.base.init_from
    card = write_card(NAME, release, config, evaluation, quantization, corpus, checks, files, start)
    (out / "README.md").write_text(card, encoding="utf8")
    (out / "Modelfile").write_text(write_modelfile(SERVED, config.context), encoding="utf8")
    write_json(out / SBOM, describe_materials(NAME, release, out, lineage, paths.deps["requirements.lock"], start))
    about = {"release": release, "gate": gate, "served": SERVED, "context": config.context, "model": NAME}
    write_json(out / "release.json", about)
    write_sums(out)
    return {"release": release, "gate": gate, "served": served}


def measure_files(out: Path, model: Transformer, clean: Path, params: Params) -> dict[str, Any]:
    """Return what each packaged format keeps of the fp32 model where its own consumer loads it: scores, tokens, ids."""
    tokenizer, config = Tokenizer.load(out / "hf"), model.config
    texts = read_texts(clean, "val", params.windows)
    spoken = texts + compose_texts(params.texts)
    sample = draw_sample(
        texts,
        tokenizer,
        context=min(config.context, params.window_tokens),
        num_windows=params.windows,
        num_positions=params.positions,
    )
    reference = score_torch(model, sample)
    formats = {"hf": {"transformers": compare_scores(sample, reference, *score_hub(out / "hf", sample))}}
    for kind, name in FILES.items():
        openvino = open_scorer(out / name, out / "hf", params)
        scores, tokens = openvino.score(sample.windows), openvino.next_tokens(sample.prefixes)
        with LlamaCppScorer(out / name, context=config.context, threads=params.base.threads) as llamacpp:
            formats[kind] = {
                "openvino": compare_scores(sample, reference, scores, tokens),
                "llamacpp": compare_llamacpp(sample, reference, llamacpp, tokenizer),
            }
            if name == SERVED:
                encoders = {"openvino": openvino.encode, "llamacpp": llamacpp.encode}
                ids = compare_tokenizers(tokenizer, spoken, encoders)
    ids["transformers"] = compare_tokens(out / "hf", spoken, read_chats(clean, params.windows))
    gap = compare_logits(out / "hf", sample.windows[:4])
    return {"formats": formats, "ids": ids, "logit_gap": round(gap, 6)}


def measure_choice(out: Path, clean: Path, params: Params) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the served file's multiple choice (None without questions), and its credit for each question."""
    scorer = open_scorer(out / SERVED, out / "hf", params)
    rows = (row for row in iter_rows(clean / "questions.parquet") if row.pop("split") == "val")
    questions = sample_questions([Question(**row) for row in rows], params.questions)
    if not questions:
        return None, {}

    def score(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        return [row[start - 1 :] for row, start in zip(scorer.score(sequences), starts, strict=True)]

    scores, *_ = score_choices(score, scorer.context, Tokenizer.load(out / "hf"), questions)
    credits = split_credit(scores, [question.answer for question in questions])
    items = {
        question.id: {"credit": credit, "options": hash_id("options", options_key(question))}
        for question, credit in zip(questions, credits, strict=True)
    }
    return as_metrics(measure_accuracy(scores, questions), "accuracy"), items


def measure_alignment(
    out: Path, paths: Paths, params: Params, evaluation: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the served file's own answers are worth next to sft's, and each prompt's part in it.

    Args: evaluation: evaluate's metrics, which say what the judge can read and how long an answer may be.
    """
    readable = {name: cost.get("kinds", []) for name, cost in evaluation.get("cost", {}).items()}
    longest = evaluation["max_new_tokens"]
    tokenizer = Tokenizer.load(out / "hf")
    sft = load_model(paths.deps["models/sft"])
    judge = RewardModel.load(paths.deps["models/reward"] / "second")
    scorer = open_scorer(out / SERVED, out / "hf", params)
    context = min(scorer.context, sft.config.context, judge.trunk.config.context)
    rows = (row for row in iter_rows(paths.deps["data/clean"] / "preferences.parquet") if row["split"] == "val")
    asked = choose_prompts(tokenizer, rows, context - longest - 1, params.prompts, readable)
    if not asked.prompts:
        log.warning("data/clean holds no held-out prompt that leaves room for an answer: alignment is not measured")
        return {}, {}
    stop, seed = (tokenizer.im_end_id, tokenizer.eos_id), params.base.seed
    ids = [prompt.ids for prompt in asked.prompts.values()]
    answers = scorer.generate(ids, max_new_tokens=longest, stop_ids=stop, seed=seed)
    served = Said.of(asked.prompts, [Completion(*answer) for answer in answers], tokenizer)
    compared = asked.compared
    before = answer_prompts(sft, tokenizer, list(compared.values()), longest, seed=seed)
    said = Said.of(compared, before.completions, tokenizer)
    return measure_answers(asked, served, said, sft, judge, tokenizer.im_end_id)


def read_chats(clean: Path, limit: int) -> list[list[dict[str, str]]]:
    """Return the first held-out conversations."""
    rows = (row for row in iter_rows(clean / "conversations.parquet") if row["split"] == "val")
    return [row["messages"] for row, _ in zip(rows, range(limit), strict=False)]


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
