"""Tokens to text while they arrive: no half characters, no stop string shown.

The text that is given out depends on the tokens alone, never on how many arrive at a time.
"""

import codecs
import unicodedata
from collections.abc import Sequence


class TextStream:
    """Detokeniser of one answer.

    A character whose bytes are not complete is held back, and so is an end of the text that may still grow into a
    stop string. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str] = ()):
        self._token_bytes = token_bytes
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.num_tokens = 0
        self.stopped = False

    def feed(self, token: int) -> str:
        """Return the text that this token makes certain; sets `stopped` when a stop string is complete."""
        assert not self.stopped, "fed after a stop string"
        self.num_tokens += 1
        # A model's vocabulary may be padded beyond the tokenizer's; such an id has no text.
        piece = self._token_bytes[token] if token < len(self._token_bytes) else b""
        return self._give_out(self._decoder.decode(piece))

    def finish(self) -> str:
        """Return what was held back, at the end of the tokens."""
        if self.stopped:
            return ""
        text = self._give_out(self._decoder.decode(b"", final=True)) + ("" if self.stopped else self._held)
        self._held = ""
        return text

    def _give_out(self, text: str) -> str:
        self._held += text
        cut = find_stop(self._held, self._stops)
        if cut is not None:
            self.stopped = True
            return self._held[:cut]
        keep = longest_start(self._held, self._stops)
        sure, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return sure


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the stop string that is complete first begins; of those that end together, the longest."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def longest_start(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of the text that begins a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def make_printable(text: str) -> str:
    """Return the text with control characters made visible, so that no answer can steer a terminal."""
    return "".join("\ufffd" if unicodedata.category(char) == "Cc" and char not in "\n\t" else char for char in text)
