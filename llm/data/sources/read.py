"""Stream a source, files or a hosted dataset, as outcomes: each input record is kept or rejected, exactly once.

Nothing is filtered here: a record is rejected only where it cannot be read as what its source says it is.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from llm.data.rows.formats import SourceFormat
from llm.data.rows.read import read_row
from llm.data.schema import BadRecord, Conversation, Document, Preference
from llm.data.sources.containers import walk_source
from llm.data.sources.hosted import is_hosted, read_hosted
from llm.data.sources.items import Fault, Item, Skip
from llm.data.sources.locations import HEAD_BYTES
from llm.data.sources.readers import choose_format, list_readers, require_format

Made = Document | Conversation | Preference

_LICENCE = re.compile(r"(?i)(.*/)?(licen[cs]e|copying|copyright|notice)(\.(txt|md|rst))?")


@dataclass(frozen=True, slots=True)
class Kept:
    """An input record and what it became; `format` is its reader's name, `removed` whose boilerplate was cut away."""

    file: str
    offset: int | str
    format: str
    records: list[Made]
    removed: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input record that cannot be used."""

    file: str
    offset: int | str
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class PassedOver:
    """What is no input record."""

    file: str
    what: str


Outcome = Kept | Rejected | PassedOver


def read_source(locator: str, source: str, fmt: SourceFormat) -> Iterator[Outcome]:
    """Yield what becomes of each input record, in the order of reading, up to the source's limits.

    Raises: ConfigError: there is nothing at the locator, or no reader or driver for it.
    """
    require_format(fmt.format)
    number = size_bytes = 0
    for outcome in (read_dataset if is_hosted(locator) else read_files)(locator, source, fmt):
        yield outcome
        if isinstance(outcome, Kept):
            number, size_bytes = number + 1, size_bytes + sum(map(count_bytes, outcome.records))
            if number >= fmt.max_records or size_bytes >= fmt.max_bytes:
                return


def count_bytes(record: Made) -> int:
    """Return the bytes of a record's text, prompts and answers included."""
    if isinstance(record, Document):
        return len(record.text.encode())
    if isinstance(record, Conversation):
        return sum(len(one["content"].encode()) for one in record.messages)
    talk = sum(len(one["content"].encode()) for one in record.prompt)
    return talk + len(record.chosen.encode()) + len(record.rejected.encode())


def read_files(locator: str, source: str, fmt: SourceFormat) -> Iterator[Outcome]:
    """Yield the outcomes of a file, folder, glob or URL, file by file."""
    for file, opened in walk_source(locator, fmt.max_expand_ratio):
        if isinstance(opened, Skip):
            yield PassedOver(file, opened.what)
        elif isinstance(opened, Fault):
            yield _reject(file, opened)
        elif fmt.format == "auto" and _LICENCE.fullmatch(file):
            yield PassedOver(file, "licence")
        else:
            name = fmt.format
            if name == "auto":
                name = choose_format(opened.peek(HEAD_BYTES), file)
            if not name:
                yield Rejected(file, 0, "unsupported_format", "no reader knows this content; see `format`")
            else:
                items = list_readers()[name].read(opened, file.lower(), fmt)
                yield from _judge_items(_guard(items, name), file, name, source, fmt)


def _guard(items: Iterable[Item | Fault | Skip], name: str) -> Iterator[Item | Fault | Skip]:
    """Yield what a reader yields, and a fault for whatever stops it: one damaged file must not stop the others."""
    last: int | str = ""
    seen = False
    try:
        for item in items:
            seen = True
            last = last if isinstance(item, Skip) else item.offset
            yield item
    except BadRecord as error:
        yield Fault(f"after {last}" if last else 0, error.reason, error.detail)
    except Exception as error:
        if isinstance(error, MemoryError) and not isinstance(error, pa.ArrowException):
            raise  # Arrow says so of damaged files, which ask for more than there is
        reason = "unreadable" if isinstance(error, OSError) and error.errno else f"corrupt_{name}"
        yield Fault(f"after {last}" if last else 0, reason, f"{type(error).__name__}: {error}")
    else:
        if not seen:
            yield Fault(0, "empty", "the file holds no records")


def _judge_items(
    items: Iterable[Item | Fault | Skip], file: str, name: str, source: str, fmt: SourceFormat
) -> Iterator[Outcome]:
    """Turn items into records, or say why not."""
    for item in items:
        if isinstance(item, Skip):
            yield PassedOver(file, item.what)
        elif isinstance(item, Fault):
            yield _reject(file, item)
        else:
            try:
                made = read_row(item.value, source, file, item.offset, fmt, item.url, item.removed)
            except BadRecord as error:
                yield _reject(file, Fault(item.offset, error.reason, error.detail))
            else:
                yield Kept(file, item.offset, name, made, item.removed)


def _reject(file: str, fault: Fault) -> Rejected:
    """Return the reject of a fault; its words can be written to a file, whatever was in the bytes."""
    return Rejected(file, fault.offset, fault.reason, fault.error.encode("utf-8", "replace").decode("utf-8"))


def read_dataset(locator: str, source: str, fmt: SourceFormat) -> Iterator[Outcome]:
    """Yield the outcomes of a split of a Hugging Face dataset, `owner/name[@config]` or a local folder, streamed."""
    name = locator.removeprefix("hf:").partition("@")[0]
    shown = Path(name).name if Path(name).exists() else name  # no absolute path in a record
    for number, row in read_hosted(locator, fmt):
        yield from _judge_items([Item(f"row {number}", row)], shown, "dataset", source, fmt)
