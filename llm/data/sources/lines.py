"""Read lines of any encoding and bounded length: a line that is too long is passed over without being held."""

import codecs
import io
from collections.abc import Iterator

from llm.data.sources.items import Fault, Stream
from llm.data.sources.locations import HEAD_BYTES
from llm.data.text.encoding import detect_encoding

_PIECE_BYTES = 1 << 20


class Recoded(io.RawIOBase):
    """A stream in some encoding as UTF-8 with plain newlines."""

    def __init__(self, stream: Stream, encoding: str) -> None:
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        self.stream, self.decoder = stream, io.IncrementalNewlineDecoder(decoder, translate=True)
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.ready:
            chunk = self.stream.read1(HEAD_BYTES)
            self.ready = self.decoder.decode(chunk, final=not chunk).encode("utf-8", "replace")
            if not chunk:
                break
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


def read_lines(stream: Stream, max_bytes: int) -> Iterator[tuple[int, str | Fault]]:
    """Yield (number from 1, line with its end, or the fault of one longer than `max_bytes`).

    Raises: BadRecord: reason `binary`, when this is no text.
    """
    head = stream.peek(HEAD_BYTES)
    encoding = detect_encoding(head)
    if encoding.startswith(("utf-16", "utf-32")) or (b"\r" in head and b"\n" not in head):
        stream, encoding = io.BufferedReader(Recoded(stream, encoding), HEAD_BYTES), "utf-8"
    number = start = 0
    while line := stream.readline(_PIECE_BYTES):
        number += 1
        line, size = _read_rest(stream, line, max_bytes)
        if size > max_bytes:
            yield number, Fault(f"line {number}", "too_long", f"{size} bytes from byte {start}; at most {max_bytes}")
        else:
            text, encoding = _decode(line, encoding)
            yield number, text.removeprefix("\ufeff") if number == 1 else text
        start += size


def _read_rest(stream: Stream, line: bytes, max_bytes: int) -> tuple[bytes, int]:
    """Return the whole line, or nothing of one that is too long, and its size."""
    if len(line) < _PIECE_BYTES and len(line) <= max_bytes:
        return line, len(line)
    held, size = bytearray(line), len(line)
    while not line.endswith(b"\n") and (line := stream.readline(_PIECE_BYTES)):
        size += len(line)
        if size <= max_bytes:
            held += line
        else:
            held.clear()
    return bytes(held), size


def _decode(line: bytes, encoding: str) -> tuple[str, str]:
    """Return the line, and the encoding of the next: UTF-8 is left for good at the first line that is not."""
    try:
        return line.decode(encoding), encoding
    except UnicodeDecodeError:
        encoding = detect_encoding(line) if encoding.startswith("utf-8") else encoding
        return line.decode(encoding, "replace"), encoding
