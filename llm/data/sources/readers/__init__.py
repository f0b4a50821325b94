"""One module per format. Adding a format is adding a module here with two functions, `sniff` and `read`.

`sniff(head, name)` says how surely a file whose first bytes are `head` is of the format: 3 by its content, 2 by its
name, 1 if nothing else claims it, 0 not. `read(stream, name, fmt)` yields what is in it, in bounded memory; it may
raise at a fault after which nothing can be read, and what it has yielded before stays.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from typing import Protocol, cast

from llm.config import require
from llm.data.rows.formats import SourceFormat
from llm.data.sources.items import Fault, Item, Skip, Stream

_COMPRESSED = re.compile(r"(\.(gz|bz2|xz|zst|zstd))+$")


class Reader(Protocol):
    """What each module of this package holds."""

    def sniff(self, head: bytes, name: str) -> int: ...
    def read(self, stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault | Skip]: ...


@cache
def list_readers() -> dict[str, Reader]:
    """Return format -> reader, for every module of this package."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: cast(Reader, importlib.import_module(f"{__name__}.{name}")) for name in names}


def require_format(name: str) -> None:
    """Raise ConfigError unless there is a reader of that name, or it is `auto`."""
    known = ", ".join(list_readers())
    require(name == "auto" or name in list_readers(), f"format: {name}: no such reader; there are auto, {known}")


def choose_format(head: bytes, name: str) -> str:
    """Return the format of a file by its first bytes and its name, or "" if no reader knows it."""
    plain = _COMPRESSED.sub("", name.lower())
    scores = {format_name: reader.sniff(head, plain) for format_name, reader in list_readers().items()}
    best = max(scores, key=lambda one: scores[one])
    return best if scores[best] > 0 else ""
