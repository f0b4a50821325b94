"""The default tasks: what held-out data gives, and the figures that evaluate reports."""

from pathlib import Path

import pytest
import torch

from llm.config import ConfigError
from llm.data.schema import Conversation, Document, Preference, write_rows
from llm.data.tokenizer import train_tokenizer
from llm.evals.tasks.pydocs import list_default_tasks, measure_tasks, swap_words
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights

SENTENCE = "Return the {} value of all given numbers in order."
NAMES = ("least", "largest", "middle", "second", "seventh", "rarest")


def talk(number: int, question: str, answer: str) -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(f"c{number}", f"g{number % 4}", "s", "qa", messages)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    texts = [f"pkg.f{i}()\n\n{SENTENCE.format(name)}" for i, name in enumerate(NAMES)]
    documents = [Document(f"d{i}", text, "s", "l", "", "{}", f"g{i % 4}") for i, text in enumerate(texts)]
    talks = [talk(i, f"In what module does pkg keep `f{i}`?", f"`f{i}` is in the module `Pkg.m{i}`.") for i in range(4)]
    talks += [talk(i, f"What does f{i} do?", SENTENCE.format(NAMES[i - 3])) for i in range(4, 8)]
    splits = {"g0": "train", "g1": "val", "g2": "val", "g3": "val"}
    write_rows(folder / "documents.parquet", Document, documents, splits)
    write_rows(folder / "conversations.parquet", Conversation, talks, splits)
    write_rows(folder / "preferences.parquet", Preference, [], {})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tokenizer = train_tokenizer([SENTENCE, "user assistant in what module"] * 4, 300)
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}
    made = {}
    for seed, name in enumerate(("sft", "policy")):
        made[name] = tmp_path_factory.mktemp(name)
        model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=128, **shape))
        init_weights(model, seed)
        with torch.no_grad():
            model.embedding.weight.mul_(20.0)
        save_model(model, made[name])
        tokenizer.save(made[name])
    return made


def test_swapped_words_are_the_same_words_in_another_order() -> None:
    sentences = [SENTENCE.format(name) for name in NAMES]
    for good in sentences:
        bad = swap_words(good)
        assert bad != good
        assert sorted(bad.split()) == sorted(good.split())
        assert sum(a != b for a, b in zip(good.split(), bad.split(), strict=True)) == 2
        assert (bad.split()[0], bad.split()[-1]) == (good.split()[0], good.split()[-1])
        assert swap_words(good) == bad
    assert swap_words("the the the the the the") == "the the the the the the"


def test_tasks_hold_held_out_rows_only(clean: Path) -> None:
    pairs, words, answers = list_default_tasks(clean)
    assert {item.good for item in pairs.items} == {SENTENCE.format(NAMES[i]) for i in (1, 2, 3, 5)}  # type: ignore[union-attr]
    # three name their module, in other words each; three begin with the sentence's first word
    assert {item.answer for item in words.items} == {"f1", "f2", "f3", SENTENCE.split()[0].lower()}  # type: ignore[union-attr]
    assert len(answers.items) == 6
    with pytest.raises(ConfigError, match="documents.parquet: no such file"):
        list_default_tasks(clean / "none")


def test_figures_have_the_names_that_reports_read(clean: Path, models: dict[str, Path]) -> None:
    found = measure_tasks(models, clean, seed=7)
    measures = {"minimal_pairs": "accuracy", "exact_match": "exact_match", "written_answers": "nats_per_token"}
    for task, measure in measures.items():
        about = found[task]
        assert (about["few_shot"], about["seed"]) == (0, 7)
        for name in models:
            figures = about[name][measure]
            assert figures.keys() == {"value", "low", "high", "n"}
            assert figures["low"] <= figures["value"] <= figures["high"]
    # The sentence on `seventh` stands in a training document, and is a held-out answer.
    assert found["exact_match"]["contaminated"]["n"] == 1
    assert found["written_answers"]["contaminated"]["n"] == 1
    assert found == measure_tasks(models, clean, seed=7)
    few = measure_tasks(models, clean, seed=7, limit=2)
    assert {few["minimal_pairs"][name]["accuracy"]["n"] for name in models} == {2}
