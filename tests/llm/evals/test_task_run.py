"""Measures by hand on a model whose log-probabilities are known, and by transformers on tiny models of two families."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from llm.config import ConfigError
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.evals.tasks.hugging_face import HuggingFaceModel
from llm.evals.tasks.items import Choice, Generation, Pair, Passage, Prompt, Task
from llm.evals.tasks.model import Ids, TransformerModel
from llm.evals.tasks.run import Setup, draw_examples, run_task, summarise, write_prompt
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from tests.llm.evals.foreign_models import write_model

FAMILIES = ("gpt2", "llama")


class Alphabet:
    """A token per character; each costs a tenth of a nat per place in the alphabet, whatever stands before it."""

    limit = 40

    def __init__(self, answers: dict[str, str] | None = None):
        self.answers, self.seen = answers or {}, list[str]()

    def encode_prompt(self, prompt: Prompt) -> Ids:
        assert isinstance(prompt, str)
        return [0, *map(ord, prompt)]

    def encode_pair(self, prompt: Prompt, continuation: str) -> tuple[Ids, Ids]:
        return self.encode_prompt(prompt), [*map(ord, continuation)]

    def score(self, sequences: Sequence[Ids], starts: Sequence[int]) -> list[list[float]]:
        self.seen += ["".join(map(chr, ids[1:])) for ids in sequences]
        assert all(1 <= start < len(ids) <= self.limit for ids, start in zip(sequences, starts, strict=True))
        return [[-self.cost(i) for i in ids[start:]] for ids, start in zip(sequences, starts, strict=True)]

    @staticmethod
    def cost(token: int) -> float:
        return max(0, token - ord("a") + 1) / 10

    def answer(self, prompts: Sequence[Ids], max_new_tokens: int) -> list[str]:
        return [self.answers["".join(map(chr, ids[1:]))] for ids in prompts]


def values(scored: Sequence[object]) -> dict[str, list[float]]:
    rows = [one.measures for one in scored]  # type: ignore[attr-defined]
    return {name: [round(row[name][0] / row[name][1], 9) for row in rows] for name in rows[0]}


def test_options_win_as_a_whole_or_by_length() -> None:
    # " b" costs 0.2 over 2 tokens and 1 character; " aaa" 0.3 over 4 and 3: short as a whole, long by its length.
    items = [
        Choice("1", "q", ("b", "aaa"), (0,)),
        Choice("2", "q", ("b", "aaa"), (1,)),
        Choice("3", "q", ("b", "b"), (0,)),
    ]
    found = values(run_task(Alphabet(), Task("t", list(items)), Setup()))
    assert found == {"accuracy": [1, 0, 0.5], "accuracy_per_token": [0, 1, 0.5], "accuracy_per_char": [0, 1, 0.5]}


def test_mass_of_right_options_by_hand() -> None:
    item = Choice("1", "q", ("a", "b", "c"), (0, 1), measure="probability_of_right")
    (mass,) = values(run_task(Alphabet(), Task("t", [item]), Setup()))["probability_of_right"]
    weights = [math.exp(-0.1), math.exp(-0.2), math.exp(-0.3)]
    assert mass == pytest.approx(sum(weights[:2]) / sum(weights))


def test_pairs_by_hand() -> None:
    items = [Pair("1", "a", "b"), Pair("2", "aab", "c"), Pair("3", "ab", "ba")]
    found = values(run_task(Alphabet(), Task("t", list(items)), Setup()))
    assert found == {"accuracy": [1, 0, 0.5], "accuracy_per_token": [1, 1, 0.5]}


def test_passages_are_ratios_of_sums() -> None:
    items = [Passage("1", "ab"), Passage("2", "é" * 3), Passage("3", "c", question="aaaa")]
    found = summarise(run_task(Alphabet(), Task("t", list(items)), Setup()))
    nats = 0.1 + 0.2 + 3 * Alphabet.cost(ord("é")) + 0.3
    assert found["nats_per_token"]["value"] == pytest.approx(nats / 6)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / 9)
    assert found["nats_per_token"]["n"] == 3


@pytest.mark.parametrize("length", [1, 39, 40, 41, 78, 79, 200])
def test_long_passages_are_scored_once_each_token(length: int) -> None:
    text = ("abcdefghij" * 20)[:length]
    model = Alphabet()
    (one,) = run_task(model, Task("t", [Passage("1", text)]), Setup())
    assert one.measures["nats_per_token"] == (pytest.approx(sum(Alphabet.cost(ord(c)) for c in text)), length)
    assert len(model.seen) == math.ceil(length / 39)


def test_long_prompts_lose_their_beginning_and_say_so() -> None:
    model = Alphabet()
    item = Choice("1", "x" * 60, ("a", "b"), (0,), form="verbatim")
    (one,) = run_task(model, Task("t", [item]), Setup())
    assert one.truncated
    assert one.logprobs == [pytest.approx(-0.1), pytest.approx(-0.2)]
    assert not run_task(Alphabet(), Task("t", [Choice("1", "x", ("a", "b"), (0,))]), Setup())[0].truncated


def test_generations_match_what_the_pattern_finds() -> None:
    items = [
        Generation("1", "one", "#### 1", "1", r"####\s*([^\n]*)"),
        Generation("2", "two", "two", "two"),
        Generation("3", "three", "3", "3"),
    ]
    answers = {"Q: one\nA:": "1+0\n#### 1\nQ: next", "Q: two\nA:": " Two.\nand more", "Q: three\nA:": " 13"}
    scored = run_task(Alphabet(answers), Task("t", list(items)), Setup())
    assert values(scored) == {"exact_match": [1, 1, 0]}
    assert scored[0].output == "1+0\n#### 1"
    assert not any(one.truncated for one in scored)
    long = Generation("4", "x" * 99, "y", "y", form="verbatim")
    (one,) = run_task(Alphabet({"x" * 18: "y"}), Task("t", [long]), Setup())
    assert one.truncated
    assert one.measures == {"exact_match": (1.0, 1.0)}


def questions(count: int) -> list[Choice]:
    return [Choice(f"id{i}", f"question {i}", ("a", "b"), (i % 2,)) for i in range(count)]


def test_examples_are_drawn_by_the_seed_and_never_the_item() -> None:
    items = [*questions(10), Choice("copy", "question 0", ("a", "b"), (0,))]
    for item in items:
        drawn = draw_examples(items, item, Setup(few_shot=4, seed=1))
        assert len({one.id for one in drawn}) == 4
        assert item.question not in [one.question for one in drawn]  # type: ignore[union-attr]
        assert drawn == draw_examples(items, item, Setup(few_shot=4, seed=1))
    seeds = {tuple(one.id for one in draw_examples(items, items[0], Setup(few_shot=4, seed=s))) for s in range(5)}
    assert len(seeds) > 1
    (scored, *_) = run_task(Alphabet(), Task("t", list(questions(3))), Setup(few_shot=1, seed=1))
    assert scored.examples == [draw_examples(questions(3), questions(3)[0], Setup(few_shot=1, seed=1))[0].id]
    with pytest.raises(ConfigError, match="few_shot is 3, but the task has only 2"):
        draw_examples(questions(3), questions(3)[0], Setup(few_shot=3))


def test_prompts_are_text_or_turns() -> None:
    shown, asked = Generation("1", "1+1?", "so\n#### 2", "2", context="Add."), Generation("2", "2+2?", "4", "4")
    assert write_prompt(asked, [shown], chat=False) == "Add.\n\nQ: 1+1?\nA: so\n#### 2\n\nQ: 2+2?\nA:"
    assert write_prompt(asked, [shown], chat=True) == [
        {"role": "user", "content": "Add.\n\n1+1?"},
        {"role": "assistant", "content": "so\n#### 2"},
        {"role": "user", "content": "2+2?"},
    ]


def test_limit_takes_the_same_items_of_any_order() -> None:
    few = [run_task(Alphabet(), Task("t", items), Setup(limit=3)) for items in (list(questions(9)), questions(9)[::-1])]
    assert {one.id for one in few[0]} == {one.id for one in few[1]}
    assert len(few[0]) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["", "The miller opens", "The miller opens ", "Who saw it?\n"])
def test_likelihoods_are_those_of_the_model_itself(tmp_path: Path, family: str, prompt: str) -> None:
    reference = write_model(tmp_path, family)
    model = HuggingFaceModel(tmp_path)
    pairs = [model.encode_pair(prompt, text) for text in ("the sluice before dawn", " é?")]
    first = [0] if family == "llama" else [1]  # <s>, or </s> where there is none
    for (head, tail), text in zip(pairs, ("the sluice before dawn", " é?"), strict=True):
        ids = model.tokenizer.encode(prompt + text, add_special_tokens=False)
        assert head + tail == ([*first, *ids] if family == "llama" or not prompt else ids)
        assert model.tokenizer.decode(tail) == prompt[len(prompt.rstrip()) :] + text
    found = model.score([head + tail for head, tail in pairs], [len(head) for head, _ in pairs])
    for (head, tail), row in zip(pairs, found, strict=True):
        with torch.no_grad():
            logp = reference(torch.tensor([head + tail])).logits[0].log_softmax(dim=-1)
        expected = [float(logp[len(head) - 1 + i, token]) for i, token in enumerate(tail)]
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_greedy_alone_and_in_company(tmp_path: Path, family: str) -> None:
    reference = write_model(tmp_path, family)
    model = HuggingFaceModel(tmp_path)
    prompts = [model.encode_prompt(text) for text in ("The miller", "Who saw it? The cat sleeps. The wheel")]
    expected = []
    for ids in prompts:
        row = list(ids)
        for _ in range(6):
            with torch.no_grad():
                row.append(int(reference(torch.tensor([row])).logits[0, -1].argmax()))
            if row[-1] == 1:
                break
        expected.append(model.tokenizer.decode(row[len(ids) :], skip_special_tokens=True))
    assert model.answer(prompts, 6) == expected


def test_our_model_gives_what_transformers_gives(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["The miller opens the sluice before dawn. Who saw it?"] * 4, 300)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}
    ours = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=64, **shape))
    init_weights(ours, 0)
    with torch.no_grad():
        ours.embedding.weight.mul_(20.0)
    save_model(ours, tmp_path)
    tokenizer.save(tmp_path)
    theirs, mine = HuggingFaceModel(tmp_path), TransformerModel(ours.eval(), Tokenizer.load(tmp_path))
    chat: Prompt = [{"role": "user", "content": "Who saw it?"}]
    assert mine.encode_prompt(chat) == theirs.encode_prompt(chat)
    assert mine.encode_prompt("Who") == [tokenizer.eos_id, *theirs.encode_prompt("Who")]
    assert mine.encode_pair("", "The miller") == theirs.encode_pair("", "The miller")
    pairs = [mine.encode_pair(prompt, " The miller") for prompt in (chat, "Q: Who?\nA: ", "")]
    assert [mine.tokenizer.decode(tail) for _, tail in pairs] == [" The miller", "  The miller", " The miller"]
    rows, starts = [head + tail for head, tail in pairs], [len(head) for head, _ in pairs]
    for one, other in zip(mine.score(rows, starts), theirs.score(rows, starts), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert mine.answer(rows, 5) == theirs.answer(rows, 5)


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config.json"):
        HuggingFaceModel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a causal model"):
        HuggingFaceModel(tmp_path)
