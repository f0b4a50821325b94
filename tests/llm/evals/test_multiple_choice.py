"""Multiple choice: credit, word overlap, and a model that is made to know an answer."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch

from llm.data.schema import Question
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.evals.multiple_choice import (
    choose_options,
    count_shared,
    measure_choices,
    measure_word_overlap,
    prompt_ids,
    sample_questions,
    score_options,
    split_credit,
    split_words,
)
from llm.infer.score import score
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["Return the sum of all values.", "Which sentence describes it? user assistant"] * 4, 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=128, **shape))
    init_weights(model, 0)
    with torch.no_grad():
        model.embedding.weight.mul_(20.0)
    return model.eval()


def make_four(name: str) -> list[Question]:
    options = [f"{name} {word} of the values." for word in ("adds all", "sorts some", "drops most", "keeps one")]
    return [
        Question(f"{name}-{i}", "g", "s", f"What does `{name}.{o.split()[1]}` do?", "What does it do?", options, i)
        for i, o in enumerate(options)
    ]


def test_credit_is_split_among_ties() -> None:
    assert split_credit([[1, 3, 3, 0], [1, 3, 3, 0], [2, 2, 2, 2], [4, 1, 1, 1]], [1, 0, 3, 0]) == [0.5, 0, 0.25, 1]


def test_words_of_names() -> None:
    assert split_words("np.read_csvFile HTTPServer x2y") == {"np", "read", "csv", "file", "http", "server", "x", "y"}


def test_word_overlap_by_hand() -> None:
    question = Question(
        "q",
        "g",
        "s",
        "What does `sort_indices` do?",
        "What does this function do?",
        ["Sorted order of a list.", "Sort the index of rows.", "What does it do?", "An icon of sorts, indicated."],
        1,
    )
    # sort: "sorted", "sort" and "sorts" begin with it; indices: "index" shares "indi"? No: "inde" against "indi".
    assert count_shared(question) == [1, 1, 0, 2]
    assert measure_word_overlap([question]).value == 0.0


def test_overlap_uses_the_whole_question_when_nothing_is_blanked() -> None:
    question = Question("q", "g", "s", "the river", "the river", ["a river", "no", "x", "y"], 0)
    assert count_shared(question) == [1, 0, 0, 0]


def test_scores_are_those_of_each_pair_alone(model: Transformer, tokenizer: Tokenizer) -> None:
    prompts = [prompt_ids(tokenizer, text) for text in ("What does it do?", "And that?")]
    options = [[tokenizer.encode(text) for text in ("It adds.", "It sorts all of it.")]] * 2
    found = score_options(partial(score, model), model.config.context, prompts, options)
    for prompt, row in zip(prompts, found, strict=True):
        for option, total in zip(options[0], row, strict=True):
            alone = sum(score(model, [prompt + option], [len(prompt)])[0])
            assert total == pytest.approx(alone, abs=1e-4)


def test_what_does_not_fit_the_context_is_cut(model: Transformer, tokenizer: Tokenizer) -> None:
    long = tokenizer.encode("sum of all values " * 60)
    options = [[long, tokenizer.encode("sum")]]
    found = score_options(partial(score, model), model.config.context, [long], options)
    assert np.isfinite(found).all()


def test_without_the_name_exactly_one_in_four_is_right(model: Transformer, tokenizer: Tokenizer) -> None:
    questions = [question for name in ("ab", "cd", "ef") for question in make_four(name)]
    found = measure_choices(model, tokenizer, questions)
    assert (found.blanked.value, found.blanked.low, found.blanked.high) == (0.25, 0.25, 0.25)
    assert found.information.n == found.length.n == 12


def test_a_name_that_says_little_is_heard_over_a_loud_option(tokenizer: Tokenizer) -> None:
    """An engine that likes "adds all" best whatever is asked, and the option that is asked for a little more."""
    questions = [question for name in ("ab", "cd") for question in make_four(name)]

    def scorer(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        rows = []
        for ids, start in zip(sequences, starts, strict=True):
            asked, option = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
            total = -20.0 + 10.0 * ("adds all" in option) + 1.0 * (f".{option.split()[1]}`" in asked)
            rows.append([total / (len(ids) - start)] * (len(ids) - start))
        return rows

    found = choose_options(scorer, 128, tokenizer, questions)
    assert found.information.value == 1.0
    assert found.length.value == 0.25
    assert found.blanked.value == 0.25


def test_sampling_keeps_questions_with_the_same_options_together() -> None:
    questions = [question for i in range(30) for question in make_four(f"n{i}")]
    found = sample_questions(questions, 50)
    assert len(found) == 48
    assert all(sum(q.options == f.options for q in found) == 4 for f in found)
    assert sample_questions(list(reversed(questions)), 50) == found
    assert len(sample_questions(questions, 1000)) == 120
