"""Build preference pairs: the right description against a sibling's, an invented one and a truncated one."""

import re

from llm.data.builtin.chats import DESCRIBE, Function, ask, describe
from llm.data.schema import Preference, hash_id, hash_share, pick

KINDS = ("sibling", "invented", "truncated")
MIN_KEPT_WORDS = 3
# A longer word is more often a noun or a verb than an article or a preposition.
MIN_KEYWORD_CHARS = 5


def build_preferences(modules: list[list[Function]], source: str) -> list[Preference]:
    """Return up to three pairs per function, one of each kind."""
    # Words of an invented answer come from the same package, so that none cross the held-out split.
    packages: dict[str, list[Function]] = {}
    for functions in modules:
        for function in functions:
            packages.setdefault(function.package, []).append(function)
    pairs = []
    for siblings in modules:
        for function in siblings:
            chosen = describe(function)
            for kind in KINDS:
                rejected = _worsen(kind, function, chosen, siblings, packages[function.package])
                if rejected and rejected.lower() != chosen.lower():
                    pairs.append(_pair(source, kind, function, chosen, rejected))
    return pairs


def _pair(source: str, kind: str, function: Function, chosen: str, rejected: str) -> Preference:
    question = ask(DESCRIBE, function, kind)
    return Preference(
        hash_id(source, kind, question, chosen, rejected),
        function.package,
        source,
        kind,
        [{"role": "user", "content": question}],
        chosen,
        rejected,
    )


def _worsen(kind: str, function: Function, chosen: str, siblings: list[Function], package: list[Function]) -> str:
    """Return a worse answer of the kind, or "" where there is none."""
    key = (kind, function.module, function.name)
    if kind == "truncated":
        return truncate(chosen, hash_share(*key))
    if kind == "invented":
        other = describe(pick(package, *key))
        return invent(chosen, other, hash_share("way", *key))
    others = [one for one in siblings if one.summary != function.summary]
    if not others:
        return ""
    # Of three siblings, the nearest in length: else a reward model learns to count characters.
    drawn = [describe(pick(others, *key, str(i))) for i in range(3)]
    return min(drawn, key=lambda text: (abs(len(text) - len(chosen)), text))


def truncate(text: str, share: float) -> str:
    """Return the text cut in mid-sentence, after 35 to 75 % of its words as `share` in [0, 1) says."""
    words = text.split()
    kept = max(MIN_KEPT_WORDS, int(len(words) * (0.35 + 0.4 * share)))
    return " ".join(words[:kept]).rstrip(".,;:!?") if kept < len(words) else ""


def invent(text: str, other: str, share: float) -> str:
    """Return a sentence that describes nothing: two halves joined, or keywords swapped for the other's."""
    words, others = text.split(), other.split()
    if share < 0.5:
        half = max(2, len(words) // 2)
        tail = others[-max(2, len(words) - half) :]
        joined = " ".join([*words[:half], *tail])
    else:
        keywords = [word for word in re.findall(r"[A-Za-z]+", other) if len(word) >= MIN_KEYWORD_CHARS]
        places = [i for i, word in enumerate(words) if len(word) >= MIN_KEYWORD_CHARS and word.isalpha()]
        for place, keyword in list(zip(places, keywords, strict=False))[:3]:
            words[place] = keyword.capitalize() if words[place].istitle() else keyword.lower()
        joined = " ".join(words)
    return joined if joined[-1] in ".!?" else joined + "."
