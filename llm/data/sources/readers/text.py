"""Plain text: txt, md, rst, and whatever else reads as text. A file of many megabytes comes in parts."""

import codecs
import io
from collections.abc import Iterator

from llm.data.rows.formats import SourceFormat
from llm.data.schema import BadRecord
from llm.data.sources.items import Item, Stream
from llm.data.sources.passages import cut_passages
from llm.data.text.boilerplate import strip_boilerplate
from llm.data.text.encoding import decode_text, detect_encoding

SUFFIXES = (".txt", ".md", ".rst", ".text", ".markdown")
PART_BYTES = 16_000_000


def sniff(head: bytes, name: str) -> int:
    if name.endswith(SUFFIXES):
        return 2
    if (
        name.endswith((".xml", ".svg")) or head.lstrip()[:5] == b"<?xml"
    ):  # its marks are no text, and no reader knows them
        return 0
    try:
        return 1 if detect_encoding(head) else 0
    except BadRecord:
        return 0


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item]:
    content = stream.read(PART_BYTES)
    more = stream.read(1)
    if not more:
        text, removed = strip_boilerplate(decode_text(content))
        yield Item(0, text, removed=removed)
        return
    decoder = codecs.getincrementaldecoder(detect_encoding(content))("replace")
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    text, removed = strip_boilerplate(newlines.decode(content).removeprefix("\ufeff"))
    start = 0
    while content := more + stream.read(PART_BYTES):
        more = b""
        end = cut_passages(text)[-1][0] if text.strip() else len(text)  # parts end where passages do
        yield Item(start, text[:end], removed=removed)
        start, text, removed = start + end, text[end:] + newlines.decode(content), ""
    text, removed = strip_boilerplate(text + newlines.decode(b"", final=True))
    yield Item(start, text, removed=removed)
