"""The whole evaluation on tiny random models: every key that others read, the same on every run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm.config import Base, ConfigError
from llm.data.schema import Conversation, Document, Preference, Question, hash_id, write_rows
from llm.data.shards import write_shard
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import PRINCIPLES, RewardModel
from stages import evaluate
from stages.plumbing.stage import Paths

NOUNS = ("list", "array", "file", "index", "table", "value", "socket", "thread")
VERBS = ("adds", "sorts", "drops", "keeps", "opens", "counts", "joins", "splits")


def make_text(seed: int) -> str:
    random = np.random.default_rng(seed)
    pairs = zip(random.choice(VERBS, 12), random.choice(NOUNS, 12), strict=True)
    return " ".join(f"It {verb} the {noun}." for verb, noun in pairs)


def make_questions() -> list[Question]:
    questions = []
    for noun in NOUNS[:5]:
        options = [f"It {verb} the {noun}." for verb in VERBS[:4]]
        for i, verb in enumerate(VERBS[:4]):
            asked = f"What does `{verb}_{noun}` do?"
            questions.append(Question(hash_id(asked), noun, "s", asked, "What does it do?", options, i))
    return questions


def make_preferences() -> list[Preference]:
    rows = []
    for i, noun in enumerate(NOUNS):
        prompt = [{"role": "user", "content": f"What does `sort_{noun}` do?"}]
        rows.append(Preference(f"p{i}", noun, "s", "sibling", prompt, f"It sorts the {noun}.", "It adds."))
    for i, principle in enumerate(PRINCIPLES * 2):
        prompt = [{"role": "user", "content": f"May I open {NOUNS[i]}?"}]
        rows.append(Preference(f"q{i}", str(i), "s", "principle", prompt, "Yes.", "No.", principle=principle))
        harmless = [{"role": "user", "content": f"May I see {NOUNS[i]}?"}]
        rows.append(Preference(f"h{i}", f"h{i}", "s", "harmless", harmless, "Yes.", "I cannot help you."))
    return rows


def make_conversations() -> list[Conversation]:
    def talk(asked: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]

    qa = [Conversation(f"c{n}", n, "s", "qa", talk(f"What is a {n}?", f"A {n}.")) for n in NOUNS]
    return [*qa, Conversation("h", "h", "s", "smalltalk", talk("Hello", "Hello! How are you?"))]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    root = tmp_path_factory.mktemp("evaluate")
    texts = [make_text(seed) for seed in range(60)]
    tokenizer = train_tokenizer(texts, 320)
    named = [(str(seed), text) for seed, text in enumerate(texts)]
    write_shard(root / "tokens", "train", named[:54], tokenizer)
    write_shard(root / "tokens", "val", named[54:], tokenizer)
    clean = root / "clean"
    clean.mkdir()
    documents = [Document(str(i), make_text(i), "s", "MIT", "", "{}", str(i)) for i in range(60)]
    write_rows(
        clean / "documents.parquet", Document, documents, {str(i): "train" if i < 54 else "val" for i in range(60)}
    )
    tables: list[tuple[str, Any, list[Any]]] = [
        ("questions", Question, make_questions()),
        ("preferences", Preference, make_preferences()),
        ("conversations", Conversation, make_conversations()),
    ]
    for name, record, rows in tables:
        write_rows(clean / f"{name}.parquet", record, rows, {row.group: "val" for row in rows})
    for seed, name in enumerate(("base", "sft", "policy", "control")):
        save_model(make_model(tokenizer, seed), root / name)
        tokenizer.save(root / name)
    for seed, name in enumerate(("reward", "reward/second")):
        model = RewardModel(make_model(tokenizer, 5 + seed))
        with torch.no_grad():
            model.weight_HD.normal_(generator=torch.Generator().manual_seed(seed))
        model.save(root / name)
    bounds = {"kl": 6.0, "cost": dict.fromkeys(PRINCIPLES, 0.15), "max_new_tokens": 6}
    (root / "rlhf.json").write_text(json.dumps({"metrics": {"bounds": bounds}}))
    (root / "pretrain.json").write_text(json.dumps({"metrics": {"tokens_seen": 1000, "steps": 10}}))
    deps = {f"models/{name}": root / name for name in ("base", "sft", "policy", "control", "reward")}
    deps |= {f"reports/{name}.json": root / f"{name}.json" for name in ("rlhf", "pretrain")}
    return Paths("evaluate", {**deps, "data/tokens": root / "tokens", "data/clean": clean}, {})


def make_model(tokenizer: Tokenizer, seed: int) -> Transformer:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=128, **shape))
    init_weights(model, seed)
    return model


@pytest.fixture(scope="module")
def params() -> evaluate.Params:
    return evaluate.Params(
        base=Base(seed=1, threads=1, dtype="fp32"), questions=16, prompts=8, samples=2, task_items=8, passages=6
    )


@pytest.fixture(scope="module")
def metrics(params: evaluate.Params, workspace: Paths) -> dict[str, Any]:
    return evaluate.run(params, workspace)


def test_has_every_key_that_others_read(metrics: dict[str, Any]) -> None:
    assert set(metrics["bits_per_byte"]) == {"base", "policy"}
    assert set(metrics["baselines"]) == {"xz", "zstd", "ngram", "uniform"}
    for name in ("base", "sft", "policy", "word_overlap", "blanked"):
        assert {"accuracy", "low", "high", "n"} <= set(metrics["multiple_choice"][name]), name
    for part in (metrics["reward"], *(metrics["reward"][name] for name in ("second", "control", "rule"))):
        assert {"sft", "policy", "delta", "delta_low", "delta_high", "n"} <= set(part)
    assert {"value", "bound"} <= set(metrics["kl"])
    assert {"sft", "policy", "ratio"} <= set(metrics["length"])
    assert {"sft", "policy", "ratio"} <= set(metrics["distinct"])
    for name in ("sft", "policy", "control", "change"):
        assert {"value", "low", "high", "n"} <= set(metrics["answered"][name]), name
    assert {"seen", "unseen", "difference"} <= set(metrics["memorisation"])
    assert set(metrics["tasks"]) == {
        "exact_match",
        "written_answers",
    }  # no sentence here has the six words of a minimal pair
    assert metrics["energy"]["modelled_joules_per_answer"] > 0
    assert set(metrics["cost"]) == set(PRINCIPLES)
    for cost in metrics["cost"].values():
        assert {"value", "low", "high", "bound", "sft", "control"} <= set(cost)
        assert (
            cost["measurable"] is False
        )  # two prompts of a principle say nothing of its head, and neither does chance
        assert 0 <= cost["low"] <= cost["value"] <= cost["high"] <= 1


def test_figures_are_sane_for_random_models(metrics: dict[str, Any]) -> None:
    baselines = metrics["baselines"]
    assert baselines["ngram"] < baselines["zstd"] < baselines["uniform"] == 8.0
    # A model without training needs about log2(vocabulary) bits per token.
    tokens, size = metrics["text"]["held_out_tokens"], metrics["text"]["held_out_bytes"]
    assert metrics["bits_per_byte"]["base"] == pytest.approx(np.log2(320) * tokens / size, rel=0.05)
    assert metrics["multiple_choice"]["blanked"]["accuracy"] == 0.25
    assert metrics["multiple_choice"]["word_overlap"]["accuracy"] > 0.9
    assert metrics["multiple_choice"]["sft"]["n"] == 16


def test_samples_show_every_kind_answered_by_every_model(metrics: dict[str, Any]) -> None:
    assert [sample["kind"] for sample in metrics["samples"]] == ["qa", "qa", "smalltalk"]
    for sample in metrics["samples"]:
        assert all(isinstance(sample[name], str) for name in ("base", "sft", "policy", "reference"))
        assert sample["messages"][-1]["role"] == "user"


def test_is_the_same_on_every_run(params: evaluate.Params, workspace: Paths, metrics: dict[str, Any]) -> None:
    again = evaluate.run(params, workspace)
    assert json.dumps(again, sort_keys=True, allow_nan=False) == json.dumps(metrics, sort_keys=True)


def test_names_what_is_missing(params: evaluate.Params, workspace: Paths, tmp_path: Path) -> None:
    for name in ("questions", "preferences", "conversations"):
        table = pq.read_table(workspace.deps["data/clean"] / f"{name}.parquet")
        at = table.schema.names.index("split")
        table = table.set_column(at, "split", pa.array(["train"] * len(table)))
        pq.write_table(table, tmp_path / f"{name}.parquet")
    models = {name: workspace.deps[f"models/{name}"] for name in ("base", "sft", "policy")}
    assert evaluate.measure_questions(params, tmp_path, models) == {}  # not measured, which the gate does not pass
    emptied = Paths("evaluate", {**workspace.deps, "data/clean": tmp_path}, {})
    with pytest.raises(ConfigError, match="held-out prompts"):
        evaluate.measure_alignment(params, emptied, {"max_new_tokens": 6})
