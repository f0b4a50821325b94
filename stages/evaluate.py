"""Evaluate: models and held-out data -> what the models are worth, with baselines and intervals.

Nothing here was seen by any training stage: whole packages are held out. Every figure that can be drawn by
chance has a 95 % interval. Nothing is cached: dvc knows whether the stage has to run.
"""

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from llm.config import StageParams, require
from llm.data.schema import Question, iter_rows
from llm.data.shards import open_shard
from llm.data.tokenizer import Tokenizer
from llm.evals.alignment import (
    Prompt,
    answer_prompts,
    answer_text,
    collect_prompts,
    compare_rewards,
    estimate_divergence,
    make_prompt,
)
from llm.evals.arms import measure_costs, measure_refusals, measure_rule, measure_swaps
from llm.evals.asked import Said, choose_prompts
from llm.evals.bits_per_byte import decode_stream, measure_bits_per_byte
from llm.evals.compressors import measure_xz, measure_zstd
from llm.evals.costs import read_heads
from llm.evals.energy import model_energy
from llm.evals.memorisation import draw_passages, measure_memorisation
from llm.evals.multiple_choice import measure_choices, measure_word_overlap, sample_questions
from llm.evals.ngram import NgramResult, measure_ngram
from llm.evals.refusal import measure_distinct
from llm.evals.statistics import as_metrics
from llm.evals.tasks.pydocs import measure_tasks
from llm.model.folder import load_model, read_config
from llm.model.transformer import Transformer
from llm.progress import track
from llm.rl.reward_model import RewardModel
from stages.plumbing.stage import Paths, main

MODELS = ("base", "sft", "policy")
ARMS = ("sft", "policy", "control")
UNIFORM_BITS = 8.0
PROMPT_TOKENS, ANSWER_TOKENS = 40, 20  # of a short exchange, for which energy is modelled


log = logging.getLogger(__name__)


class Params(StageParams):
    window: int = Field(
        256, ge=2, le=1 << 20, description="tokens of context in bits per byte; what the model was trained with"
    )
    stride: float = Field(0.75, gt=0, le=1, description="share of a window that is scored anew in bits per byte")
    batch_size: int = Field(8, ge=1, le=4096, description="windows per batch; changes the order of sums")
    baseline_bytes: int = Field(
        256_000_000, ge=10_000, description="most training bytes the baselines read; the report says if more were"
    )
    questions: int = Field(400, ge=4, le=100_000, description="most held-out multiple-choice questions")
    prompts: int = Field(256, ge=2, le=100_000, description="most held-out prompts for reward and KL")
    task_items: int = Field(200, ge=4, le=100_000, description="most items of each task on the default corpus")
    passages: int = Field(
        200, ge=1, le=10_000, description="most passages of either split that are asked to be recited"
    )
    samples: int = Field(4, ge=0, le=100, description="unselected answers shown per kind of conversation")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    text = read_text(params, paths)
    bounds = json.loads(paths.deps["reports/rlhf.json"].read_text(encoding="utf8"))["metrics"]["bounds"]
    models = {name: paths.deps[f"models/{name}"] for name in MODELS}
    return {
        **measure_text(params, text),
        "bits_per_byte": {name: measure_model(params, text, models[name]) for name in ("base", "policy")},
        "multiple_choice": measure_questions(params, paths.deps["data/clean"], models),
        **measure_alignment(params, paths, bounds),
        "tasks": measure_tasks(models, paths.deps["data/clean"], params.base.seed, params.task_items),
        **measure_recital(params, paths),
        **model_costs(paths),
        "samples": draw_samples(params, paths.deps["data/clean"], models, bounds["max_new_tokens"]),
        "max_new_tokens": bounds["max_new_tokens"],
    }


@dataclass(frozen=True)
class Text:
    """The held-out stream as tokens, and both streams as bytes, a NUL after each document."""

    tokenizer: Tokenizer
    token_bytes: list[bytes]
    tokens: Any
    train: bytes
    held_out: bytes
    num_bytes: int
    documents: int
    left_out: int


def read_text(params: Params, paths: Paths) -> Text:
    """Read both splits of data/tokens; baselines see at most `baseline_bytes` of the training text."""
    tokenizer = Tokenizer.load(paths.deps["models/base"])
    token_bytes = tokenizer.token_bytes()
    shards = {split: open_shard(paths.deps["data/tokens"], split) for split in ("train", "val")}
    train, held_out = (decode_stream(shards[split].tokens, token_bytes) for split in ("train", "val"))
    documents = len(shards["val"].offsets) - 1
    require(len(held_out) > documents, "data/tokens holds no held-out text: raise clean.holdout")
    kept = train[: params.baseline_bytes]
    left_out = len(train) - len(kept)
    num_bytes = len(held_out) - documents
    return Text(tokenizer, token_bytes, shards["val"].tokens, kept, held_out, num_bytes, documents, left_out)


def measure_text(params: Params, text: Text) -> dict[str, Any]:
    """Bits per byte of the baselines; all read the same training bytes and code the same stream."""
    # Compressors and sorting release the interpreter: the threads share the cores, the longest work first.
    with ThreadPoolExecutor(params.base.threads) as pool:
        work: dict[str, Callable[[bytes, bytes], Any]] = {
            "xz": measure_xz,
            "zstd": measure_zstd,
            "ngram": measure_ngram,
        }
        futures: dict[str, Future[Any]] = {
            name: pool.submit(measure, text.train, text.held_out) for name, measure in work.items()
        }
        for _ in track(as_completed(futures.values()), "baselines", total=len(futures)):
            pass
        found = {name: future.result() for name, future in futures.items()}
    ngram = found["ngram"]
    assert isinstance(ngram, NgramResult)
    # Everyone codes the documents and their ends and is charged per byte of text.
    scale = len(text.held_out) / text.num_bytes
    bits = {"xz": found["xz"], "zstd": found["zstd"], "ngram": ngram.bits_per_byte}
    return {
        "baselines": {**{name: value * scale for name, value in bits.items()}, "uniform": UNIFORM_BITS},
        "text": {
            "held_out_bytes": text.num_bytes,
            "held_out_tokens": len(text.tokens),
            "held_out_documents": text.documents,
            "baseline_bytes": len(text.train),
            "baseline_bytes_left_out": text.left_out,
            "ngram_order": ngram.order,
            "ngram_development_bits": {str(order): value for order, value in ngram.development_bits.items()},
            "ngram_held_out_bits": {str(order): value for order, value in ngram.held_out_bits.items()},
        },
    }


def measure_model(params: Params, text: Text, folder: Path) -> float:
    """Bits per byte of one model over all held-out text."""
    model = load_model(folder, params.base.torch_dtype)
    label = f"bits per byte of {folder.name}"
    found = measure_bits_per_byte(
        model,
        text.tokens,
        text.token_bytes,
        text.tokenizer.eos_id,
        params.window,
        params.stride,
        params.batch_size,
        label,
    )
    assert found.num_bytes == text.num_bytes
    return found.value


def measure_questions(params: Params, clean: Path, models: dict[str, Path]) -> dict[str, Any]:
    """Multiple choice by each model, by shared words, and by sft with the name blanked."""
    held_out = [Question(**row) for row in read_held_out(clean / "questions.parquet")]
    if not held_out:  # short plain texts yield none: the figures are missing, which the gate does not pass
        log.warning("data/clean holds no held-out questions: multiple choice is not measured")
        return {}
    questions = sample_questions(held_out, params.questions)
    found: dict[str, Any] = {"word_overlap": as_metrics(measure_word_overlap(questions), "accuracy")}
    for name, folder in track(list(models.items()), "multiple choice"):
        tokenizer = Tokenizer.load(folder)
        choices = measure_choices(load_model(folder, params.base.torch_dtype), tokenizer, questions)
        found[name] = as_metrics(choices.information, "accuracy")
        found[name]["by_length"] = as_metrics(choices.length, "accuracy")
        if name == "sft":
            found["blanked"] = as_metrics(choices.blanked, "accuracy")
    return found


def read_held_out(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the held-out split, without the column that says so."""
    return ({k: v for k, v in row.items() if k != "split"} for row in iter_rows(path) if row["split"] == "val")


def measure_alignment(params: Params, paths: Paths, bounds: dict[str, Any]) -> dict[str, Any]:
    """Rewards, length, divergence, costs, refusals and swaps of sft's, policy's and control's answers.

    Args: bounds: what rlhf held the policy to, and how long an answer may be, from its report.
    """
    tokenizer = Tokenizer.load(paths.deps["models/policy"])
    models = {name: load_model(paths.deps[f"models/{name}"]) for name in ARMS}
    first, second = (RewardModel.load(paths.deps["models/reward"] / part) for part in (".", "second"))
    context = min(models["sft"].config.context, first.trunk.config.context)
    room = context - bounds["max_new_tokens"] - 1
    rows = list(read_held_out(paths.deps["data/clean"] / "preferences.parquet"))
    heads = read_heads(second, tokenizer, rows, context)
    kinds = {name: reading.read for name, reading in heads.items()}
    asked = choose_prompts(tokenizer, rows, room, params.prompts, kinds)
    require(
        len(asked.general) > 1,
        f"data/clean holds {len(asked.general)} held-out prompts that leave room for an answer of "
        f"rlhf.max_new_tokens={bounds['max_new_tokens']}: raise clean.holdout or lower it",
    )
    said = {}
    for name, model in track(list(models.items()), "answers"):
        prompts = list(asked.prompts.values())
        answers = answer_prompts(model, tokenizer, prompts, bounds["max_new_tokens"], seed=params.base.seed)
        said[name] = Said.of(asked.prompts, answers.completions, tokenizer)
    general = {name: one.pick(asked.general) for name, one in said.items()}
    texts = {name: [one.texts[key] for key in asked.general] for name, one in said.items()}
    end = tokenizer.im_end_id
    by_first, by_second, control = (
        compare_rewards(general["sft"], general[arm], judge, end).metrics()
        for arm, judge in (("policy", first), ("policy", second), ("control", first))
    )
    lengths = {name: sum(one.lengths) / len(asked.general) for name, one in general.items()}
    distinct = {name: measure_distinct(one) for name, one in texts.items()}
    return {
        "reward": {**by_first, "second": by_second, "control": control, **measure_rule(asked, said)},
        "length": {**lengths, "ratio": lengths["policy"] / lengths["sft"]},
        "distinct": {**distinct, "ratio": distinct["policy"] / distinct["sft"]},
        "kl": {
            **as_metrics(estimate_divergence(models["policy"], models["sft"], general["policy"])),
            "bound": bounds["kl"],
        },
        "answered": measure_refusals(asked, said),
        "cost": measure_costs(asked, said, heads, second, end, bounds["cost"]),
        "swap": measure_swaps(models, tokenizer, asked, second, bounds["max_new_tokens"]),
    }


def measure_recital(params: Params, paths: Paths) -> dict[str, Any]:
    """What the policy recites of its training text, against text that it never saw; nothing without such text."""
    folder, documents = paths.deps["models/policy"], paths.deps["data/clean"] / "documents.parquet"
    tokenizer = Tokenizer.load(folder)
    seen, unseen = (draw_passages(documents, tokenizer, split, params.passages) for split in ("train", "val"))
    if not seen or not unseen:
        log.warning("data/clean holds no passages long enough: memorisation is not measured")
        return {}
    return {"memorisation": measure_memorisation(load_model(folder), seen, unseen).metrics()}


def model_costs(paths: Paths) -> dict[str, Any]:
    """Modelled energy of an answer and of pretraining."""
    trained = json.loads(paths.deps["reports/pretrain.json"].read_text(encoding="utf8"))["metrics"]
    config = read_config(paths.deps["models/policy"])
    energy = model_energy(config, PROMPT_TOKENS, ANSWER_TOKENS, trained["tokens_seen"], trained["steps"])
    return {"energy": energy}


def draw_samples(params: Params, clean: Path, models: dict[str, Path], max_new_tokens: int) -> list[dict[str, Any]]:
    """The first prompts of each kind by hash, answered greedily by every model: nobody chose them."""
    tokenizer = Tokenizer.load(models["base"])
    loaded: dict[str, Transformer] = {name: load_model(folder) for name, folder in models.items()}
    room = min(model.config.context for model in loaded.values()) - max_new_tokens - 1
    by_kind: dict[str, list[Prompt]] = {}
    for row in read_held_out(clean / "conversations.parquet"):
        *messages, last = row["messages"]
        by_kind.setdefault(row["kind"], []).append(make_prompt(tokenizer, messages, last["content"]))
    shown = [
        (kind, prompt) for kind in sorted(by_kind) for prompt in collect_prompts(by_kind[kind], room, params.samples)
    ]
    prompts = [prompt for _, prompt in shown]
    answers = {
        name: answer_prompts(model, tokenizer, prompts, max_new_tokens, temperature=0.0).completions
        for name, model in loaded.items()
    }
    return [
        {
            "kind": kind,
            "messages": prompt.messages,
            "reference": prompt.reference,
            **{name: answer_text(tokenizer, completions[i]) for name, completions in answers.items()},
        }
        for i, (kind, prompt) in enumerate(shown)
    ]


if __name__ == "__main__":
    main(Params, run)
