"""Rows of published sets to items, recognised by their columns, never by the file's name.

| columns | set | item |
|---|---|---|
| sentence_good, sentence_bad; good, bad | BLiMP, any | pair |
| sent_more, sent_less | CrowS-Pairs | pair: the share in which the more stereotyping one is more probable |
| mc1_targets and mc2_targets; best_answer, incorrect_answers | TruthfulQA | choice, as parts mc1 and mc2 |
| answer_matching_behavior and its opposite | model-written evaluations | choice: the share that matches |
| ans0, ans1, ...; question, options or choices, answer or label | BBQ, MMLU, ARC, any | choice |
| input, target | BBH | choice where the answer is yes or no or the options are listed, else generation |
| given_info, question, answer; prompt, label (yes or no) | CLadder | as BBH |
| prompt, canonical_solution | HumanEval | passage: code is never run here |
| question or prompt, answer (and `regex` that finds it) | GSM8K, any | generation |
| text | any | passage |
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from llm.data.rows.cells import find_cells, read_scalar, read_string
from llm.data.rows.conversations import find_option, read_options
from llm.data.rows.formats import SourceFormat
from llm.data.schema import BadRecord, hash_id
from llm.evals.tasks.items import (
    AFTER_HASHES,
    FIRST_LINE,
    Choice,
    Form,
    Generation,
    Item,
    Pair,
    Passage,
    extract_answer,
)

Row = Mapping[str, Any]
Parts = list[tuple[str, Item]]  # a part's name, "" where a row is one item
EXPECTED = (
    "question, options and answer (its place, letter or words); question or prompt and answer; good and bad; text; or "
    "the columns of BLiMP, BBQ, CrowS-Pairs, BBH, GSM8K, CLadder, TruthfulQA or HumanEval"
)
_CHOICES = SourceFormat(kind="choices")
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_LISTED = re.compile(r"\nOptions:\s*\n(.*)\Z", re.DOTALL)
_OPTION = re.compile(r"^\s*(?:(\([A-Z]\))|-)\s*(.*\S)\s*$", re.MULTILINE)
WORKED_TOKENS, SHORT_TOKENS = 256, 32  # room for an answer that is worked out, and for one that is not


def read_items(row: Row) -> Parts:
    """Return the items of a row. Raises BadRecord: it is none, and why."""
    filled = {str(name): value for name, value in row.items() if value is not None and value != ""}
    cells = filled | {_simplify(name): value for name, value in filled.items()}
    for needs, read in FAMILIES:
        if needs <= cells.keys():
            return read(cells)
    raise BadRecord("unknown_columns", f"{', '.join(map(ascii, filled))[:200]}; expected {EXPECTED}")


def _simplify(name: str) -> str:
    return name.strip().removeprefix("\ufeff").lower().replace(" ", "_")


def _text(row: Row, column: str) -> str:
    text = read_scalar(row[column], column)
    if not text.strip():
        raise BadRecord("empty", f"{column} is blank")
    return text


def _optional(row: Row, *columns: str) -> str:
    return "\n\n".join(_text(row, one) for one in columns if row.get(one))


def _identify(*parts: str) -> str:
    return hash_id("item", *parts)[:16]


def _pair(row: Row, good: str, bad: str, measure: str, group: str) -> Parts:
    first, second = _text(row, good), _text(row, bad)
    if first == second:
        raise BadRecord("same_texts", f"{good} and {bad} are equal")
    return [("", Pair(_identify(first, second), first, second, measure, _optional(row, group)))]


def _choice(
    question: str,
    options: list[str],
    right: list[int],
    context: str = "",
    *,
    form: Form = "qa",
    measure: str = "accuracy",
    group: str = "",
) -> Choice:
    if len(options) < 2 or not right or len(right) == len(options):
        raise BadRecord("bad_options", f"{len(options)} options of which {len(right)} are right: need both kinds")
    if not all(one.strip() for one in options):
        raise BadRecord("empty", "an option is blank")
    name = _identify(context, question, *options, *map(str, right))
    return Choice(name, question, tuple(options), tuple(right), context, form, measure, group)


def _read_truthful(row: Row) -> Parts:
    parts: Parts = []
    for part in ("mc1", "mc2"):
        targets = row.get(f"{part}_targets")
        if targets is None:
            continue
        targets = json.loads(targets) if isinstance(targets, str) else targets
        if isinstance(targets, Mapping) and {"choices", "labels"} <= targets.keys():
            targets = dict(zip(targets["choices"], targets["labels"], strict=True))
        if not isinstance(targets, Mapping) or not all(one in (0, 1) for one in targets.values()):
            raise BadRecord("wrong_type", f"{part}_targets: expected {{answer: 0 or 1}}, or choices and labels")
        options = [read_string(one, f"{part}_targets") for one in targets]
        right = [i for i, label in enumerate(targets.values()) if label == 1]
        parts.append((part, _choice(_text(row, "question"), options, right, measure=_measure_of(part))))
    return parts


def _measure_of(part: str) -> str:
    return "accuracy" if part == "mc1" else "probability_of_right"


def _read_truthful_table(row: Row) -> Parts:
    best, wrong = _text(row, "best_answer").strip(), _split(row, "incorrect_answers")
    right = list(dict.fromkeys([best, *(_split(row, "correct_answers") if row.get("correct_answers") else [])]))
    question, group = _text(row, "question"), _optional(row, "category")
    made = [
        (part, _choice(question, [*good, *wrong], list(range(len(good))), measure=_measure_of(part), group=group))
        for part, good in (("mc1", [best]), ("mc2", right))
    ]
    return list(made)


def _split(row: Row, column: str) -> list[str]:
    return list(dict.fromkeys(one.strip() for one in _text(row, column).split(";") if one.strip()))


def _read_behaviour(row: Row) -> Parts:
    options = [_text(row, "answer_matching_behavior"), _text(row, "answer_not_matching_behavior")]
    return [("", _choice(_text(row, "question"), options, [0], measure="matching"))]


def _read_choices(row: Row) -> Parts:
    lists = ("options", "choices")
    listed: dict[object, object] = {name: _parse_list(row[name]) if name in lists else row[name] for name in row}
    cells = find_cells(listed, "", "", 0, _CHOICES)
    labels, options = read_options(cells)
    right = find_option(cells.values["label"], labels, options)
    question, context = cells.text("question", "empty"), cells.optional("context")
    form: Form = "verbatim" if cells.names["question"] in ("prompt", "ctx") else "qa"
    group = _optional(row, "context_condition")
    return [("", _choice(question, options, [right], context, form=form, group=group))]


def _parse_list(value: object) -> object:
    """A list that a table's cell holds as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise BadRecord("bad_json", "the options are not a list in JSON") from None
    return value


def _read_bbh(row: Row) -> Parts:
    return [("", _answer(_text(row, "input"), _text(row, "target").strip()))]


def _read_cladder(row: Row) -> Parts:
    context = _optional(row, "background", "given_info")
    return [("", _answer(_text(row, "question"), _text(row, "answer").strip(), context))]


def _read_verdict(row: Row) -> Parts:
    label = _text(row, "label").strip()
    if label.casefold() not in _OPPOSITES:
        raise BadRecord("unknown_label", f"{label!r}: expected yes or no beside a prompt")
    return [("", _answer(_text(row, "prompt"), label))]


def _answer(question: str, target: str, context: str = "") -> Item:
    """A choice between listed options or between yes and no, else a short free answer."""
    if listed := _LISTED.search(question):
        options = [label or words for label, words in _OPTION.findall(listed[1])]
        if target not in options:
            raise BadRecord("unknown_label", f"{target!r} is none of the options {options}")
        return _choice(question, options, [options.index(target)], context)
    if (opposite := _OPPOSITES.get(target.casefold())) is not None:
        options = sorted([target, opposite.capitalize() if target[0].isupper() else opposite], reverse=True)
        return _choice(question, options, [options.index(target)], context)
    return _generation(question, target, context)


def _generation(
    question: str, solution: str, context: str = "", form: Form = "qa", pattern: str = "", tokens: int = SHORT_TOKENS
) -> Generation:
    extract = pattern or (AFTER_HASHES if "####" in solution else FIRST_LINE)
    answer = extract_answer(solution.strip(), extract)
    if not answer and pattern:  # the pattern is for what is generated; the answer may stand alone
        answer = extract_answer(solution.strip(), FIRST_LINE)
    if not answer:
        raise BadRecord("no_answer", f"no answer is found in {solution[:80]!r} by {extract}")
    room = WORKED_TOKENS if extract == AFTER_HASHES else tokens
    return Generation(
        _identify(context, question, solution), question, solution.strip(), answer, extract, room, context, form
    )


def _read_answer(row: Row) -> Parts:
    form: Form = "qa" if "question" in row else "verbatim"
    question = _text(row, "question" if form == "qa" else "prompt")
    pattern = _optional(row, "regex")
    try:
        re.compile(pattern)
    except re.error as error:
        raise BadRecord("bad_regex", f"regex {pattern!r}: {error}") from None
    solution = row["answer"][0] if isinstance(row["answer"], list) and row["answer"] else row["answer"]
    tokens = WORKED_TOKENS if pattern else SHORT_TOKENS
    answer = read_scalar(solution, "answer")
    return [("", _generation(question, answer, _optional(row, "context"), form, pattern, tokens))]


def _read_code(row: Row) -> Parts:
    prompt, solution = _text(row, "prompt"), _text(row, "canonical_solution")
    return [("", Passage(_identify(prompt, solution), solution, prompt))]


def _read_text(row: Row) -> Parts:
    text = _text(row, "text")
    return [("", Passage(_identify(text), text))]


# The most telling columns first.
FAMILIES: list[tuple[frozenset[str], Callable[[Row], Parts]]] = [
    (frozenset(needs), read)
    for needs, read in (
        (("sentence_good", "sentence_bad"), lambda row: _pair(row, "sentence_good", "sentence_bad", "accuracy", "")),
        (("sent_more", "sent_less"), lambda row: _pair(row, "sent_more", "sent_less", "stereotype", "bias_type")),
        (("good", "bad"), lambda row: _pair(row, "good", "bad", "accuracy", "")),
        (("question", "mc1_targets"), _read_truthful),
        (("question", "mc2_targets"), _read_truthful),
        (("question", "best_answer", "incorrect_answers"), _read_truthful_table),
        (("question", "answer_matching_behavior", "answer_not_matching_behavior"), _read_behaviour),
        (("ans0", "ans1", "label"), _read_choices),
        (("question", "a", "b", "answer"), _read_choices),
        (("options",), _read_choices),
        (("choices",), _read_choices),
        (("endings",), _read_choices),
        (("input", "target"), _read_bbh),
        (("given_info", "question", "answer"), _read_cladder),
        (("prompt", "canonical_solution"), _read_code),
        (("prompt", "label"), _read_verdict),
        (("question", "answer"), _read_answer),
        (("prompt", "answer"), _read_answer),
        (("text",), _read_text),
    )
]
