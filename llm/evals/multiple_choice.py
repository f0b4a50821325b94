"""Multiple choice by likelihood: which of the options does the model find most natural as the answer?

The question is a user's turn in ChatML, the option the assistant's. Two scores; the first is the one that is
reported as accuracy, fixed before any model was measured:

- information: log p(option | question) - log p(option | blanked question), what the name in the question tells
  about the option. An option that is probable whatever is asked gains nothing by that, nor a short one by its
  length.
- length: log p(option | question) / tokens of the option.

Source: Holtzman et al. 2021, arXiv:2104.08315 (domain-conditional PMI, the blanked question being the domain
premise); length normalisation as in GPT-3, arXiv:2005.14165, section 2.4.

Two guards. A baseline without a model: the option that shares most words with the name. A control: the same
questions with the name blanked, scored by length (by information all options would tie), where every model
can only guess. Questions that share their options hang together, so intervals resample them together.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from llm.data.chat import render
from llm.data.schema import Question, hash_id
from llm.data.tokenizer import Tokenizer
from llm.evals.statistics import Interval, clustered_interval
from llm.infer.score import score
from llm.model.transformer import Transformer

Scorer = Callable[[Sequence[Sequence[int]], Sequence[int]], list[list[float]]]

# "indices" shares its beginning with "index"; shorter beginnings meet by accident ("for", "form").
MIN_SHARED_LETTERS = 4
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")


@dataclass(frozen=True)
class Choices:
    """The share of questions answered rightly: by either score, and by length with the name blanked."""

    information: Interval
    length: Interval
    blanked: Interval


def sample_questions(questions: Sequence[Question], limit: int) -> list[Question]:
    """At most `limit` questions by the hash of their options: those that share them stay together."""
    ranked = sorted(questions, key=lambda q: (hash_id("questions", options_key(q)), q.id))
    whole = [q for q in ranked[:limit] if len(ranked) <= limit or options_key(q) != options_key(ranked[limit])]
    return whole or ranked[:limit]


def options_key(question: Question) -> str:
    """The same for all questions with the same options."""
    return "\0".join(sorted(question.options))


def measure_choices(model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question]) -> Choices:
    """Let a model choose an option of each question."""
    return choose_options(partial(score, model), model.config.context, tokenizer, questions)


def choose_options(scorer: Scorer, context: int, tokenizer: Tokenizer, questions: Sequence[Question]) -> Choices:
    """Let any engine choose: `scorer` returns the log-probabilities of each sequence's tokens from its start on."""
    scores = score_choices(scorer, context, tokenizer, questions)
    return Choices(*(measure_accuracy(rows, questions) for rows in scores))


def score_choices(
    scorer: Scorer, context: int, tokenizer: Tokenizer, questions: Sequence[Question]
) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]]]:
    """Return each question's scores of its options: by information, by length, by length with the name blanked."""
    asked = [prompt_ids(tokenizer, question.question) for question in questions]
    blanked = [prompt_ids(tokenizer, question.blanked) for question in questions]
    options = [tokenizer.encode_batch(question.options) for question in questions]
    totals = score_options(scorer, context, asked + blanked, options + options)
    given, free = totals[: len(questions)], totals[len(questions) :]
    lengths = [[max(1, len(option)) for option in choices] for choices in options]
    return (
        [np.subtract(g, f) for g, f in zip(given, free, strict=True)],
        [np.divide(g, n) for g, n in zip(given, lengths, strict=True)],
        [np.divide(f, n) for f, n in zip(free, lengths, strict=True)],
    )


def measure_accuracy(scores: Sequence[npt.ArrayLike], questions: Sequence[Question]) -> Interval:
    """The share of questions whose answer scores highest."""
    credit = split_credit(scores, [question.answer for question in questions])
    return clustered_interval(credit, [options_key(question) for question in questions])


def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """The ids of a user's question and an opened assistant turn."""
    return render(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)[0]


def score_options(
    scorer: Scorer,
    context: int,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Log-probability [nats] of the tokens of each option after its prompt.

    What does not fit the model's context is cut: the end of an option, then the beginning of a prompt. Pairs
    that occur more than once are computed once.
    """
    pairs = []
    for prompt, choices in zip(prompts, options, strict=True):
        for option in choices:
            kept = tuple(option[: context // 2])
            pairs.append((tuple(prompt[-(context - len(kept)) :]), kept))
    unique = list(dict.fromkeys(pairs))
    logprobs = scorer([[*head, *kept] for head, kept in unique], [len(head) for head, _ in unique])
    total = {pair: sum(row) for pair, row in zip(unique, logprobs, strict=True)}
    found = iter(pairs)
    return [[total[next(found)] for _ in choices] for choices in options]


def split_credit(scores: Sequence[npt.ArrayLike], answers: Sequence[int]) -> list[float]:
    """1 where the answer scores highest, 1/k where it ties with k - 1 others for that, else 0."""
    credit = []
    for row, answer in zip(scores, answers, strict=True):
        best = np.flatnonzero(np.asarray(row) == np.max(row))
        credit.append(1 / len(best) if answer in best else 0.0)
    return credit


def measure_word_overlap(questions: Sequence[Question]) -> Interval:
    """Accuracy of choosing the option that shares most words with the name; ties are split evenly."""
    return measure_accuracy([count_shared(question) for question in questions], questions)


def count_shared(question: Question) -> list[int]:
    """How many words of the name each option has, a word of it being met by any with the same beginning.

    The name is what the blanked question lacks; without any, all of the question.
    """
    words = split_words(question.question)
    names = words - split_words(question.blanked) or words
    return [sum(any(agree(name, word) for word in split_words(o)) for name in names) for o in question.options]


def split_words(text: str) -> set[str]:
    """Lower-case words of a text; names are split at case changes, digits, dots and underscores."""
    return {word.lower() for word in WORD.findall(text)}


def agree(one: str, other: str) -> bool:
    """Equal, or beginning with the same four letters."""
    return one == other or (
        min(len(one), len(other)) >= MIN_SHARED_LETTERS and one[:MIN_SHARED_LETTERS] == other[:MIN_SHARED_LETTERS]
    )
