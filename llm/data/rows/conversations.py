"""Rows that hold chats, answers and judgements become conversations and preferences.

Understood are talks (see turns), instructions, questions with their answers or with options, pairs, verdicts on two
answers (ties too) and single answers labelled good or bad.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llm.data.rows.cells import Cells, read_scalar, show
from llm.data.rows.turns import check_messages, is_talk, read_messages, read_weights, say, split_reply
from llm.data.schema import BadRecord, Conversation, Message, Preference, hash_id

# Kinds of records, which the training stages weigh: several turns or one, and pairs from outside.
CHAT, QA, GIVEN = "chat", "qa", "given"
PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")

_TIES = ("tie", "both", "equal", "draw", "same", "none", "neither")
_VERDICT = re.compile(r"(?:(?:model|response|output|answer|completion|assistant)[ _-]?)?([a-z0-9])")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_chat(row: Cells) -> list[Conversation | Preference]:
    """Return a chat of messages or turns, with the row's system prompt in front."""
    talk = row.values["messages"], row.names["messages"]
    made = build_conversation(row, CHAT, _instruct(row, read_messages(*talk)))
    return [replace(made, weights=read_weights(*talk))]


def read_choices(row: Cells) -> list[Conversation | Preference]:
    """Return a question with its options, lettered, as a conversation that answers with the right option's words."""
    labels, options = read_options(row)
    label = row.values["label"]
    right = find_option(label, labels, options)
    listed = "\n".join(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))
    asked = [row.optional("context"), row.text("question", "empty_prompt"), listed]
    messages = [say("user", "\n\n".join(filter(None, asked))), say("assistant", options[right])]
    return [build_conversation(row, QA, messages)]


def read_pair(row: Cells) -> list[Conversation | Preference]:
    """Return a chosen and a rejected answer; the prompt is a column of its own, or what both talks begin with."""
    prompt, chosen, rejected = read_sides(row, "chosen", "rejected")
    principle = row.optional("principle") or None
    if principle and principle not in PRINCIPLES:
        raise BadRecord("unknown_principle", f"{show(principle)}: expected {', '.join(PRINCIPLES)}")
    return [build_preference(row, prompt, chosen, rejected, _read_margin(row), principle)]


def read_ranked(row: Cells) -> list[Conversation | Preference]:
    """Return two answers with the one that the label names first; a tie keeps their order and has the margin 0."""
    prompt, first, second = read_sides(row, "first", "second")
    verdict = _read_verdict(row.values["label"], row.names["first"], row.names["second"])
    if verdict == 2:
        first, second = second, first
    return [build_preference(row, prompt, first, second, None if verdict else 0.0)]


def read_labelled(row: Cells) -> list[Conversation | Preference]:
    """Return an answer that was found good as a conversation.

    One that was found bad is refused as `unpaired_label`, always: there is no better one in its row to set it
    against, and answers in other rows were given to whoever asked there.
    """
    label = row.values["label"]
    if isinstance(label, str):  # as CSV files have it
        label = {"true": True, "1": True, "false": False, "0": False}.get(label.strip().lower(), label)
    if not isinstance(label, int) or label not in (0, 1):
        raise BadRecord("unknown_label", f"{show(row.names['label'])} is {show(label)}, expected true or false")
    head, reply = split_reply(row.values["reply"], row.names["reply"])
    if not label:
        raise BadRecord("unpaired_label", "an answer labelled bad, without a better one")
    return [build_conversation(row, QA, [*(head or read_prompt(row)), say("assistant", reply)])]


def read_sides(row: Cells, first: str, second: str) -> tuple[list[Message], str, str]:
    """Return the prompt and the two answers, or raise BadRecord: a blank one, equal ones, or two prompts."""
    (head, one), (other_head, other) = (split_reply(row.values[side], row.names[side]) for side in (first, second))
    if head != other_head:
        raise BadRecord("differing_prompts", f"{first} and {second} answer different prompts")
    prompt = _instruct(row, head) if head else read_prompt(row)
    if not any(message["role"] == "user" for message in prompt):
        raise BadRecord("empty_prompt", "no user turn before the answers")
    if one.strip() == other.strip():
        raise BadRecord("same_answers", f"{first} and {second} are equal")
    return prompt, one, other


def read_prompt(row: Cells) -> list[Message]:
    """Return the messages before the answer: a system prompt, then the turns, or context, question and input."""
    column = "prompt" if "prompt" in row.shape.columns else "instruction" if "instruction" in row else "question"
    if column not in row:
        raise BadRecord("missing_column", f"no prompt; {' and '.join(row.shape.needs)} hold none either")
    value = row.values[column]
    if not isinstance(value, str) or is_talk(value):
        messages = read_messages(value, row.names[column])
        while messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
            messages.pop()  # a transcript's prompt ends in `Assistant:`
        check_messages(messages, "empty_prompt")
        return _instruct(row, messages)
    # One cell can serve two columns: an `input` that is the prompt is not its input too.
    extra = row.optional("input") if row.names.get("input") != row.names[column] else ""
    asked = [row.optional("context"), row.text(column, "empty_prompt"), extra]
    return _instruct(row, [say("user", "\n\n".join(filter(None, asked)))])


def build_conversation(row: Cells, kind: str, messages: Sequence[Message]) -> Conversation:
    """Return the conversation up to its last answer, or raise BadRecord: nobody asks, nobody answers, or one is mute.

    What the user says after the last answer has none, and so nothing to learn from.
    """
    last = max((i for i, one in enumerate(messages) if one["role"] == "assistant"), default=-1)
    if last < 0:
        raise BadRecord("no_answer", "no assistant turn")
    said = list(messages[: last + 1])
    if not said[-1]["content"].strip():
        raise BadRecord("empty_reply", "the last answer is blank")
    check_messages(said, "empty_message")
    name = hash_id(row.source, kind, *(one["role"] + "\0" + one["content"] for one in said))
    return Conversation(name, group_prompt(said), row.source, kind, said)


def build_preference(
    row: Cells, prompt: list[Message], chosen: str, rejected: str, margin: float | None, principle: str | None = None
) -> Preference:
    """Return the preference."""
    name = hash_id(row.source, *(one["content"] for one in prompt), chosen, rejected)
    return Preference(name, group_prompt(prompt), row.source, GIVEN, prompt, chosen, rejected, margin, principle)


def group_prompt(messages: Sequence[Message]) -> str:
    """Return the group of a talk, a hash of the first question: what answers it is trained on or held out, all of it.

    Raises:  BadRecord: there is no user turn.
    """
    for one in messages:
        if one["role"] == "user":
            return hash_id("prompt", one["content"].strip())
    raise BadRecord("empty_prompt", "no user turn")


def _instruct(row: Cells, messages: list[Message]) -> list[Message]:
    """Return messages with the row's system prompt in front, unless they begin with their own."""
    text = row.optional("system")
    return [say("system", text), *messages] if text and messages[:1] and messages[0]["role"] != "system" else messages


def _read_margin(row: Cells) -> float | None:
    """Return by how much the chosen answer is better; tables of text have numbers as words, and blanks for none."""
    value = row.values.get("margin")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        margin = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        margin = math.nan
    if margin is None:
        raise BadRecord("wrong_type", f"margin is {type(value).__name__}, expected a number")
    if not (math.isfinite(margin) and margin >= 0):
        raise BadRecord("bad_margin", f"{show(value)}: expected a number of at least 0")
    return margin


def _read_verdict(label: object, first: str, second: str) -> int:
    """Return 1 or 2 for the better answer, 0 for a tie; the columns' own endings say how they are numbered."""
    ends = first[-1:].lower(), second[-1:].lower()
    known = [{ends[0], first.lower(), "first"}, {ends[1], second.lower(), "second"}]
    if isinstance(label, str | int | float) and not isinstance(label, bool):
        said = str(int(label)) if isinstance(label, float) and label.is_integer() else read_scalar(label, "label")
        said = said.strip().lower()
        bare = match[1] if (match := _VERDICT.fullmatch(said)) else said
        for number, names in enumerate(known, 1):
            if said in names or bare in names:
                return number
        if said.startswith(_TIES) or said == {"1": "0", "a": "c"}.get(ends[0]):
            return 0
    raise BadRecord("unknown_label", f"{show(label)} names neither {show(first)} nor {show(second)} nor a tie")


def read_options(row: Cells) -> tuple[list[str], list[str]]:
    """Return the names and the words of the options: columns of their own, a list, or a table of both."""
    if "options" not in row:
        columns = [column for column in sorted(row.values) if column.startswith("option_")]
        if columns[-1] != f"option_{len(columns) - 1}":
            raise BadRecord("missing_column", f"of the options before {show(row.names[columns[-1]])} one is empty")
        return list(LETTERS[: len(columns)]), [read_scalar(row.values[one], row.names[one]) for one in columns]
    value, name = row.values["options"], row.names["options"]
    labels: object = LETTERS
    if isinstance(value, Mapping) and "text" in value:
        labels, value = value.get("label", LETTERS), value["text"]
    elif isinstance(value, Mapping):
        labels, value = list(value), list(value.values())
    if not isinstance(value, list) or not isinstance(labels, str | list) or not 2 <= len(value) <= len(LETTERS):
        raise BadRecord("wrong_type", f"{show(name)}: expected a list of 2 to {len(LETTERS)} options")
    options = [read_scalar(one, name) for one in value]
    return [read_scalar(one, name) for one in labels[: len(options)]], options


def find_option(label: object, labels: list[str], options: list[str]) -> int:
    """Return the place of the right option, which is named by its label, its letter, its words or its place from 0."""
    if not isinstance(label, bool) and isinstance(label, str | int):
        said = read_scalar(label, "label").strip()
        for names in (labels, list(LETTERS[: len(options)]), options, [str(i) for i in range(len(options))]):
            if said in names and (isinstance(label, str) or names is not options):
                return names.index(said)
    raise BadRecord("unknown_label", f"{show(label)} names none of the {len(options)} options")
