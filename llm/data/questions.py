"""Build four-way multiple-choice questions whose blanked form cannot be answered above chance.

Items (the right option of a question each) are gathered into fours of similar length, and each item of a
four is asked for once, always among the same four options. So a model that is not told what is asked for
chooses the same option four times and is right once: length, style and frequency of an option are no clue.
"""

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llm.data.builtin.chats import Function
from llm.data.builtin.docstrings import split_sentences
from llm.data.schema import Document, Question, hash_id, take_sample

NUM_OPTIONS = 4
MAX_LENGTH_RATIO = 1.2
# So that no single package decides the score, and that a large corpus does not take hours to be judged.
MAX_PER_PACKAGE, MAX_PER_SOURCE = 160, 8_000
MIN_OPTION_CHARS, MAX_OPTION_CHARS = 25, 240

NAMED = "Which sentence describes the function `{name}` of the module `{module}`?"
BLANKED = "Which sentence describes this function of the module `{module}`?"
CONTINUED = "Which sentence follows this one? {context}"
CONTINUED_BLANKED = "Which sentence follows this one?"


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its right option."""

    question: str
    option: str


def gather_fours(items: Sequence[Item], salt: str) -> list[list[Item]]:
    """Return disjoint fours in which no option is more than 20 % longer than another.

    Items whose options differ in case and punctuation only are left out, for more than one would be right.
    """
    by_words: dict[str, list[Item]] = {}
    for item in items:
        by_words.setdefault(" ".join(re.findall(r"\w+", item.option.lower())), []).append(item)
    unique = [found[0] for found in by_words.values() if len(found) == 1]
    unique.sort(key=lambda item: (len(item.option), hash_id(salt, item.question)))
    fours, start = [], 0
    while start + NUM_OPTIONS <= len(unique):
        four = unique[start : start + NUM_OPTIONS]
        if len(four[-1].option) <= MAX_LENGTH_RATIO * len(four[0].option):
            fours.append(four)
            start += NUM_OPTIONS
        else:
            start += 1
    return fours


def ask_four(four: Sequence[Item], blanked: str, group: str, source: str) -> list[Question]:
    """Return one question per item of the four; a hash orders the options of each."""
    questions = []
    for item in four:
        options = sorted((one.option for one in four), key=lambda text: hash_id(item.question, text))
        name = hash_id(source, item.question, item.option)
        questions.append(Question(name, group, source, item.question, blanked, options, options.index(item.option)))
    return questions


def build_questions(modules: list[list[Function]], source: str) -> list[Question]:
    """Return questions on which of four first sentences of a module's docstrings is a function's."""
    packages: dict[str, list[list[Question]]] = {}
    for functions in modules:
        items = [Item(NAMED.format(name=one.name, module=one.module), one.summary) for one in functions]
        for four in gather_fours(items, functions[0].module if functions else ""):
            package, blanked = functions[0].package, BLANKED.format(module=functions[0].module)
            packages.setdefault(package, []).append(ask_four(four, blanked, package, source))
    questions: list[Question] = []
    for fours in packages.values():
        fours.sort(key=lambda four: hash_id("four", four[0].id))
        questions += [one for four in fours[: MAX_PER_PACKAGE // NUM_OPTIONS] for one in four]
    return take_sample(questions, MAX_PER_SOURCE, "group")


class ContinuationSample:
    """Questions on a stream of documents: those of the groups whose hashed names are smallest, as `take_sample` takes.

    Holds at most `limit` questions and those of one group more, and asks only where a question could stay: the more
    documents have passed, the fewer are looked at.
    """

    def __init__(self, source: str, limit: int = MAX_PER_SOURCE) -> None:
        self.source, self.limit, self.size = source, limit, 0
        # By the hash of the group's name, and within it by document: the same text may come twice.
        self.groups: dict[str, dict[str, list[Question]]] = {}
        self.largest: list[tuple[int, str]] = []  # a heap of negated hashes
        self.end = "g"  # groups from this hash on have no place; greater than any hex digit

    def add(self, documents: Iterable[Document]) -> None:
        """Ask about the documents, each in its group."""
        for document in documents:
            name = hash_id("sample", document.group)
            if name >= self.end or document.id in self.groups.get(name, {}):
                continue
            if name not in self.groups:
                heapq.heappush(self.largest, (-int(name, 16), name))
            found = self.groups.setdefault(name, {})[document.id] = ask_continuations(document, self.source)
            self.size += len(found)
            while self.size > self.limit:
                self.end = heapq.heappop(self.largest)[1]
                self.size -= sum(map(len, self.groups.pop(self.end).values()))

    def take(self) -> list[Question]:
        """Return the questions by id."""
        found = [one for group in self.groups.values() for questions in group.values() for one in questions]
        return sorted(found, key=lambda one: one.id)


def ask_continuations(document: Document, source: str) -> list[Question]:
    """Return questions on which of four sentences of one passage follows a given one.

    All four come from the same passage, for options from elsewhere could have been in the training text.
    """
    paragraphs = re.split(r"\n\s*\n", document.text)
    sentences = [one for part in paragraphs for one in split_sentences(" ".join(part.split()))]
    items = [
        Item(CONTINUED.format(context=context), option)
        for context, option in zip(sentences, sentences[1:], strict=False)
        if len(context) >= MIN_OPTION_CHARS and MIN_OPTION_CHARS <= len(option) <= MAX_OPTION_CHARS
    ]
    fours = gather_fours(items, document.id)
    return [one for four in fours for one in ask_four(four, CONTINUED_BLANKED, document.group, source)]
