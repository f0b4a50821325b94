"""Count the letters of a text by script, from the Unicode blocks of the scripts that most text is written in.

Blocks, not the script property, which Python's unicodedata lacks: a letter of a rarer script counts as `Other`.
"""

from collections import Counter

import numpy as np

# (first code point, last code point, script); letters and the marks and signs among them. Unicode 15, Blocks.txt.
BLOCKS = (
    (0x41, 0x5A, "Latin"),
    (0x61, 0x7A, "Latin"),
    (0xC0, 0x24F, "Latin"),
    (0x370, 0x3FF, "Greek"),
    (0x400, 0x52F, "Cyrillic"),
    (0x530, 0x58F, "Armenian"),
    (0x590, 0x5FF, "Hebrew"),
    (0x600, 0x6FF, "Arabic"),
    (0x750, 0x77F, "Arabic"),
    (0x900, 0x97F, "Devanagari"),
    (0x980, 0x9FF, "Bengali"),
    (0xB80, 0xBFF, "Tamil"),
    (0xC00, 0xC7F, "Telugu"),
    (0xE00, 0xE7F, "Thai"),
    (0x10A0, 0x10FF, "Georgian"),
    (0x1100, 0x11FF, "Hangul"),
    (0x1200, 0x137F, "Ethiopic"),
    (0x1E00, 0x1EFF, "Latin"),
    (0x1F00, 0x1FFF, "Greek"),
    (0x3040, 0x30FF, "Kana"),
    (0x3400, 0x4DBF, "Han"),
    (0x4E00, 0x9FFF, "Han"),
    (0xAC00, 0xD7AF, "Hangul"),
    (0xF900, 0xFAFF, "Han"),
    (0x20000, 0x3FFFF, "Han"),
)
_STARTS = np.array([block[0] for block in BLOCKS], dtype=np.uint32)
_ENDS = np.array([block[1] for block in BLOCKS], dtype=np.uint32)
# Beyond Latin-1, what is in no block above but is no letter either: punctuation, symbols, forms, private use.
_SYMBOLS = (
    (0x80, 0xBF),
    (0x2000, 0x2BFF),
    (0x2E00, 0x2FFF),
    (0x3000, 0x303F),
    (0xE000, 0xF8FF),
    (0xFE00, 0xFFFF),
    (0x1F000, 0x1FAFF),
)


def count_scripts(text: str) -> Counter[str]:
    """Return how many letters of each script a text has; ASCII digits, signs and spaces count nowhere."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    ascii_points = points[points < 128]
    latin = int(((ascii_points | 32) - np.uint32(97) < 26).sum())  # unsigned: what is below `a` wraps round
    wide = points[points >= 128]
    places = np.searchsorted(_STARTS, wide, side="right") - 1
    inside = wide <= _ENDS[places]
    counts = np.bincount(places[inside], minlength=len(BLOCKS))
    found: Counter[str] = Counter({"Latin": latin}) if latin else Counter()
    for place in np.flatnonzero(counts):
        found[BLOCKS[place][2]] += int(counts[place])
    others = wide[~inside]
    symbols = sum(int(((others >= low) & (others <= high)).sum()) for low, high in _SYMBOLS)
    if len(others) > symbols:
        found["Other"] += len(others) - symbols
    return found
