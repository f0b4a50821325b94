"""The default tasks, made from what `clean` held out; multiple choice from there is `llm.evals.multiple_choice`.

- minimal_pairs: a sentence against the same with two of its words swapped.
- exact_match: the first word of the answer, which for a docstring is its verb: is it a getter or a parser?
- written_answers: the perplexity of answers that people wrote, after their questions.

Every held-out package can give one sentence per document; a task for which nothing was held out is left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm.config import require
from llm.data.builtin.docstrings import split_sentences
from llm.data.schema import hash_id, hash_share, iter_rows
from llm.data.tokenizer import Tokenizer
from llm.evals.tasks.contamination import find_contaminated
from llm.evals.tasks.items import Generation, Item, Pair, Passage, Task, extract_answer
from llm.evals.tasks.model import TransformerModel
from llm.evals.tasks.run import Scored, Setup, measure, run_task, sample_items, summarise
from llm.model.folder import load_model
from llm.progress import track

MIN_WORDS, MAX_WORDS = 6, 30
FIRST_WORD = r"\A\W*(\w+)"
FIRST_WORD_TOKENS = 8
DOCSTRINGS = "qa"  # the kind of the talks about docstrings


def list_default_tasks(clean: Path) -> list[Task]:
    """Return the tasks that the held-out split of a cleaned corpus gives. Raises ConfigError: it is none."""
    for name in ("documents", "conversations"):
        file = clean / f"{name}.parquet"
        require(file.is_file(), f"{file}: no such file; name the folder that the stage clean wrote, with --clean")
    made: dict[str, Iterator[Item]] = {
        "minimal_pairs": _pair_sentences(clean / "documents.parquet"),
        "exact_match": _ask_first_words(clean / "conversations.parquet"),
        "written_answers": _take_answers(clean / "conversations.parquet"),
    }
    tasks = [Task(name, list({item.id: item for item in items}.values())) for name, items in made.items()]
    return [task for task in tasks if task.items]


def _held_out(file: Path) -> Iterator[dict[str, Any]]:
    return (row for row in iter_rows(file) if row["split"] == "val")


def _pair_sentences(file: Path) -> Iterator[Item]:
    """One sentence of each document, by hash."""
    for row in _held_out(file):
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", row["text"])]
        sentences = [one for part in paragraphs for one in split_sentences(part)]
        usable = [one for one in sentences if MIN_WORDS <= len(one.split()) <= MAX_WORDS]
        if usable:
            good = min(usable, key=lambda one: hash_id("pair", one))
            bad = swap_words(good)
            if bad != good:
                yield Pair(hash_id("pair", good)[:16], good, bad)


def swap_words(sentence: str) -> str:
    """Return the sentence with two different words swapped that the hash names; the ends stay."""
    words = sentence.split()
    inner = range(1, len(words) - 1)
    pairs = [(i, j) for i in inner for j in inner if i < j and words[i].lower() != words[j].lower()]
    if pairs:
        i, j = pairs[int(hash_share("swap", sentence) * len(pairs))]
        words[i], words[j] = words[j], words[i]
    return " ".join(words)


def _ask_first_words(file: Path) -> Iterator[Item]:
    for question, answer, kind in _read_questions(file):
        if kind == DOCSTRINGS and (word := extract_answer(answer, FIRST_WORD)):
            name = hash_id("first word", question, answer)[:16]
            yield Generation(name, question, answer, word, FIRST_WORD, FIRST_WORD_TOKENS, group=kind)


def _take_answers(file: Path) -> Iterator[Item]:
    for question, answer, group in _read_questions(file):
        yield Passage(hash_id("answer", question, answer)[:16], answer, question, group)


def _read_questions(file: Path) -> Iterator[tuple[str, str, str]]:
    """(question, answer, kind) of the talks of one question each."""
    for row in _held_out(file):
        messages = row["messages"]
        if [one["role"] for one in messages] == ["user", "assistant"]:
            yield messages[0]["content"], messages[1]["content"], row["kind"]


def measure_tasks(
    models: Mapping[str, Path], clean: Path, seed: int, limit: int = 200, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Measure models of ours on the default tasks.

    Args:    models: name -> folder.  clean: what the stage clean wrote.  seed: draws items and resamples.
             limit: most items of a task.  dtype: what the models compute in.
    Returns: {task: {model: {measure: {value, low, high, n}}, few_shot, seed, contaminated}}; contaminated is the last
             model's first measure on the items found in the training text, {value, low, high, n}, or None.
    """
    setup = Setup(seed=seed, chat=True, limit=limit)
    tasks = [Task(task.name, sample_items(task.items, setup)) for task in list_default_tasks(clean)]
    contaminated = find_contaminated([item for task in tasks for item in task.items], clean)
    found: dict[str, Any] = {task.name: {"few_shot": 0, "seed": seed} for task in tasks}
    for name, folder in track(list(models.items()), "tasks"):
        model = TransformerModel(load_model(folder, dtype).eval(), Tokenizer.load(folder))
        for task in tasks:
            scored = run_task(model, task, setup)
            found[task.name][name] = summarise(scored, seed)
            found[task.name]["contaminated"] = split_contaminated(scored, contaminated, seed)["contaminated"]
    return found


def split_contaminated(scored: Sequence[Scored], contaminated: set[str], seed: int = 0) -> dict[str, Any]:
    """The first measure of the items that the training text holds, and of the others; None where there are none."""
    name = next(iter(scored[0].measures))
    parts = {
        "contaminated": [one for one in scored if one.id in contaminated],
        "clean": [one for one in scored if one.id not in contaminated],
    }
    return {key: measure(part, name, seed) if part else None for key, part in parts.items()}
