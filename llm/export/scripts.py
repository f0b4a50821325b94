"""Texts in every script of Unicode, the same on every machine: on their ids all readers of a release must agree.

A script here is all letters, marks and numbers whose names in Unicode begin with the same word; punctuation and
symbols are one more. Each text is words of one script between odd spaces; every third one also holds pieces on which
tokenizers are known to part.
"""

import unicodedata
from collections import defaultdict
from random import Random

WORDS = 12
LONGEST = 9  # characters of a word
SYMBOLS = "(symbols)"
UNNAMED = "(unnamed)"  # Tangut ideographs, to this Python
SPACES = (
    *(" ",) * 8,
    *("  ", "   ", "\n", "\n\n", " \n", "\r\n", "\t"),
    *("\u00a0", "\u1680", "\u2009", "\u2028", "\u200b", "\u3000"),
)
PIECES = (
    *("it's", "WE'LL", "don\u2019t", "I\u02bcm", "x'S", "3.14", "1234567890", "10\u00b2", "\u2167", "100%"),
    *("def f(x):\n    return {'a': x[-1]}  # 12", "\tif (a!=b)&&c{++i;}\r\n", '<p class="a">&nbsp;</p>', "<|im_end"),
    *("e\u0301\u0323\u0302", "\u0301", "A\u030a", "\ufb01", "\ud55c", "\u1112\u1161\u11ab", "\u0e33"),
    *("\u0930\u094d\u0915", "\u0627\u0644\u0644\u0651\u0647", "\u0663\u0664", "\u202eabc\u202c", "\ufeff", "\u00ad"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f44d\U0001f3fd"),
    *("a\u0000b", "\u0007", "\u0085", "\ufffd", "\ue000", "\U0010ffff", "\U000e0041", "1\ufe0f\u20e3"),
)


def list_scripts() -> dict[str, list[str]]:
    """Return the characters of each script, in code point order."""
    scripts: dict[str, list[str]] = defaultdict(list)
    for character in map(chr, range(0x110000)):
        kind = unicodedata.category(character)[0]
        if kind in "LMN":
            scripts[unicodedata.name(character, UNNAMED).split()[0]].append(character)
        elif kind in "PS":
            scripts[SYMBOLS].append(character)
    return dict(sorted(scripts.items()))


def compose_texts(count: int) -> list[str]:
    """Return `count` texts, script by script in turn; the words of a script start at even distances over it."""
    scripts = list_scripts()
    names = list(scripts)
    rounds = -(-count // len(names))
    return [_compose_text(scripts[names[i % len(names)]], i, i // len(names), rounds) for i in range(count)]


def _compose_text(characters: list[str], seed: int, number: int, rounds: int) -> str:
    random = Random(seed)
    parts: list[str] = []
    for i in range(number, rounds * WORDS, rounds):
        start = i * len(characters) // (rounds * WORDS)
        word = characters[start : start + random.randint(1, LONGEST)]
        if random.random() < 0.5:
            random.shuffle(word)
        parts += ["".join(word), random.choice(SPACES)]
        if seed % 3 == 0:
            parts += [random.choice(PIECES), random.choice(("", " "))]
    return "".join(parts)
