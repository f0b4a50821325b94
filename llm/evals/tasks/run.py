"""Run a task: prompts with their examples, what the model makes of them, and the measures with their intervals.

Every measure is a ratio of two sums over items, so that one estimator serves all: the share of right answers (of
items), nats per token and bits per byte.

- choice: the option with the largest log-probability [nats] as a whole, per token, and per character of its words
  (lm-evaluation-harness's acc and acc_norm); options that tie share the credit.
- generation: exact match of what the item's pattern finds in the greedy answer.
- pair: the more probable text, as a whole and per token.
- passage: nats per token, bits per byte; what exceeds the context is scored in windows, each token once.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llm.config import require
from llm.data.schema import hash_id
from llm.evals.multiple_choice import split_credit
from llm.evals.statistics import as_metrics, ratio_interval
from llm.evals.tasks.items import Choice, Generation, Item, Pair, Passage, Prompt, Task, extract_answer, join_parts
from llm.evals.tasks.model import Ids, Model

Figures = dict[str, float | int]


@dataclass(frozen=True)
class Setup:
    """How a task is put: examples before each question and the seed they are drawn by, chat template, items at most."""

    few_shot: int = 0
    seed: int = 0
    chat: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Scored:
    """What a model made of one item: measure -> (numerator, denominator), and what that was computed from."""

    id: str
    measures: dict[str, tuple[float, float]]
    examples: list[str]
    group: str = ""
    logprobs: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    output: str | None = None
    truncated: bool = False


def run_task(model: Model, task: Task, setup: Setup) -> list[Scored]:
    """Return the scores of a task's items, or of the `limit` whose ids hash lowest."""
    items = sample_items(task.items, setup)
    shown = [draw_examples(task.items, item, setup) for item in items]
    runs: dict[str, Callable[..., list[Scored]]] = {
        "choice": _run_choices,
        "generation": _run_generations,
        "pair": _run_pairs,
        "passage": _run_passages,
    }
    return runs[task.kind](model, items, shown, setup.chat)


def sample_items(items: Sequence[Item], setup: Setup) -> list[Item]:
    """At most `limit` items, by a hash of the seed and the item: files are often sorted."""
    if setup.limit is None or len(items) <= setup.limit:
        return list(items)
    return sorted(items, key=lambda item: hash_id(str(setup.seed), item.id))[: setup.limit]


def draw_examples(items: Sequence[Item], item: Item, setup: Setup) -> list[Item]:
    """Draw the examples of an item by the seed and its id: never the item, nor one that asks the same."""
    if not setup.few_shot or isinstance(item, Pair | Passage):
        return []
    random_order = random.Random(f"{setup.seed}:{item.id}")
    drawn: list[Item] = []
    # Each draw that is refused costs one more; a file may hold many copies of a question.
    places = random_order.sample(range(len(items)), len(items)) if len(items) < 1000 else None
    for at in range(len(items)):
        other = items[places[at] if places else random_order.randrange(len(items))]
        if other.texts[0] != item.texts[0] and all(other.id != one.id for one in drawn):
            drawn.append(other)
        if len(drawn) == setup.few_shot:
            return drawn
    require(False, f"few_shot is {setup.few_shot}, but the task has only {len(drawn)} other questions: lower it")
    return drawn


def write_prompt(item: Choice | Generation, examples: Sequence[Item], chat: bool) -> Prompt:
    """The question after its examples: messages with a chat template, else one text."""
    if chat:
        turns = []
        for one in examples:
            turns += [("user", _ask(one)), ("assistant", _solve(one))]
        return [{"role": role, "content": content} for role, content in [*turns, ("user", _ask(item))]]
    parts = [f"{_lead(one)}{delimit(_lead(one), _solve(one))}" for one in examples]
    return "\n\n".join([*parts, _lead(item)])


def _ask(item: Item) -> str:
    assert isinstance(item, Choice | Generation)
    return join_parts(item.context, item.question)


def _lead(item: Item) -> str:
    assert isinstance(item, Choice | Generation)
    return _ask(item) if item.form == "verbatim" else join_parts(item.context, f"Q: {item.question}\nA:")


def _solve(item: Item) -> str:
    return item.solution if isinstance(item, Generation) else item.options[item.right[0]]  # type: ignore[union-attr]


def delimit(prompt: Prompt, continuation: str) -> str:
    """The continuation with a blank in front, unless the prompt is a chat or empty, or there is a blank already."""
    plain = not isinstance(prompt, str) or not prompt or prompt[-1].isspace() or continuation[:1].isspace()
    return continuation if plain else f" {continuation}"


@dataclass(frozen=True)
class _Likelihood:
    logprob: float
    num_tokens: int
    truncated: bool


def _score_pairs(model: Model, pairs: Iterable[tuple[Prompt, str]]) -> list[_Likelihood]:
    """Log-probability [nats] of each continuation; what is too long loses its beginning."""
    encoded = [model.encode_pair(prompt, continuation) for prompt, continuation in pairs]
    sequences = [(head + tail)[-model.limit :] for head, tail in encoded]
    starts = [max(1, len(row) - len(tail)) for row, (_, tail) in zip(sequences, encoded, strict=True)]
    logprobs = model.score(sequences, starts)
    cut = [len(head) + len(tail) > model.limit for head, tail in encoded]
    return [_Likelihood(sum(one), len(one), was) for one, was in zip(logprobs, cut, strict=True)]


def _run_choices(model: Model, items: list[Choice], shown: list[list[Item]], chat: bool) -> list[Scored]:
    prompts = [write_prompt(item, examples, chat) for item, examples in zip(items, shown, strict=True)]
    pairs = [(p, delimit(p, option)) for p, item in zip(prompts, items, strict=True) for option in item.options]
    found = iter(_score_pairs(model, pairs))
    scored = []
    for item, examples in zip(items, shown, strict=True):
        rows = [next(found) for _ in item.options]
        sums = np.array([row.logprob for row in rows])
        if item.measure == "probability_of_right":
            mass = np.exp(sums - sums.max())
            measures = {item.measure: (float(mass[list(item.right)].sum() / mass.sum()), 1.0)}
        else:
            by_token = sums / [row.num_tokens for row in rows]
            by_char = sums / [len(option) for option in item.options]
            names = (item.measure, f"{item.measure}_per_token", f"{item.measure}_per_char")
            measures = {
                name: (sum(split_credit([values], [right])[0] for right in item.right), 1.0)
                for name, values in zip(names, (sums, by_token, by_char), strict=True)
            }
        scored.append(_describe(item, measures, rows, examples))
    return scored


def _run_pairs(model: Model, items: list[Pair], shown: list[list[Item]], chat: bool) -> list[Scored]:
    found = iter(_score_pairs(model, [("", text) for item in items for text in (item.good, item.bad)]))
    scored = []
    for item in items:
        rows = [next(found), next(found)]
        measures = {
            item.measure: (split_credit([[row.logprob for row in rows]], [0])[0], 1.0),
            f"{item.measure}_per_token": (split_credit([[row.logprob / row.num_tokens for row in rows]], [0])[0], 1.0),
        }
        scored.append(_describe(item, measures, rows, []))
    return scored


def _run_passages(model: Model, items: list[Passage], shown: list[list[Item]], chat: bool) -> list[Scored]:
    spans = [_cut_windows(*_encode_passage(model, item, chat), model.limit) for item in items]
    flat = [span for row in spans for span in row]
    found = iter(model.score([ids for ids, _ in flat], [start for _, start in flat]))
    scored = []
    for item, row in zip(items, spans, strict=True):
        logprobs = [one for _ in row for one in next(found)]
        nats, num_bytes = -sum(logprobs), len(item.text.encode())
        measures = {
            "nats_per_token": (nats, float(len(logprobs))),
            "bits_per_byte": (nats / math.log(2), float(num_bytes)),
        }
        scored.append(_describe(item, measures, [_Likelihood(-nats, len(logprobs), False)], []))
    return scored


def _encode_passage(model: Model, item: Passage, chat: bool) -> tuple[Ids, Ids]:
    prompt: Prompt = [{"role": "user", "content": item.question}] if chat and item.question else item.question
    return model.encode_pair(prompt, item.text)


def _cut_windows(head: Ids, tail: Ids, limit: int) -> list[tuple[Ids, int]]:
    """(ids, first scored) of windows of at most `limit` ids that score each id of the tail once, in order.

    Each but the first begins so early that it is full: its first scored token has the most before it.
    """
    head = head[-max(1, limit - len(tail)) :]
    ids = head + tail
    done = len(head)
    windows: list[tuple[Ids, int]] = []
    while done < len(ids):
        stop = min(len(ids), limit if not windows else done + limit - 1)
        first = max(0, stop - limit)
        windows.append((ids[first:stop], done - first))
        done = stop
    return windows


def _run_generations(model: Model, items: list[Generation], shown: list[list[Item]], chat: bool) -> list[Scored]:
    outputs: dict[str, str] = {}
    cut: set[str] = set()
    for room in sorted({item.max_new_tokens for item in items}):
        rows = [(item, examples) for item, examples in zip(items, shown, strict=True) if item.max_new_tokens == room]
        fit = min(room, model.limit // 2)  # half the context is left to the question
        most = model.limit - 1 - fit
        prompts = [model.encode_prompt(write_prompt(*row, chat)) for row in rows]
        cut |= {item.id for (item, _), ids in zip(rows, prompts, strict=True) if len(ids) > most}
        answers = model.answer([ids[-most:] for ids in prompts], fit)
        outputs |= {item.id: answer for (item, _), answer in zip(rows, answers, strict=True)}
    scored = []
    for item, examples in zip(items, shown, strict=True):
        output = outputs[item.id] if chat else outputs[item.id].partition("\nQ:")[0]
        right = extract_answer(output, item.extract) == item.answer
        one = _describe(item, {"exact_match": (float(right), 1.0)}, [], examples)
        scored.append(replace(one, output=output, truncated=item.id in cut))
    return scored


def _describe(
    item: Item,
    measures: dict[str, tuple[float, float]],
    rows: Sequence[_Likelihood],
    examples: Sequence[Item],
) -> Scored:
    return Scored(
        item.id,
        measures,
        [one.id for one in examples],
        item.group,
        [row.logprob for row in rows],
        [row.num_tokens for row in rows],
        truncated=any(row.truncated for row in rows),
    )


def summarise(scored: Sequence[Scored], seed: int = 0) -> dict[str, Figures]:
    """Every measure with its interval."""
    return {name: measure(scored, name, seed) for name in scored[0].measures}


def summarise_groups(scored: Sequence[Scored], seed: int = 0) -> dict[str, Figures]:
    """The first measure of each group of items, where there are several."""
    name = next(iter(scored[0].measures))
    groups = sorted({one.group for one in scored} - {""})
    parts = {group: [one for one in scored if one.group == group] for group in groups}
    return {group: measure(part, name, seed) for group, part in parts.items()} if len(groups) > 1 else {}


def measure(scored: Sequence[Scored], name: str, seed: int = 0) -> Figures:
    """One measure of some items: {value, low, high, n}."""
    above, below = zip(*(one.measures[name] for one in scored), strict=True)
    return as_metrics(ratio_interval(above, below, seed=seed))
