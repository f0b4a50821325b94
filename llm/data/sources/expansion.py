"""Bytes out of compressed ones, counted: how far they may expand, and errors that come after the last good byte."""

import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from llm.data.schema import BadRecord
from llm.data.sources.items import Stream

MAX_EXPANDED_BYTES = 1 << 40  # of one file of the source
# What expands to less than this harms nobody, whatever the ratio. With what a decompressor reads ahead, a bomb is known
# within 16 MB, which is when the first part of a long text would be given away.
SLACK_BYTES = 2_000_000

# What the decompressors and the archive modules raise on damaged bytes.
PARSE_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, ArithmeticError, LookupError, AssertionError, TypeError, struct.error,
    zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, pa.ArrowException,
)  # fmt: skip


@dataclass
class Budget:
    """How far compressed bytes may expand; what a member expands counts against the files around it too."""

    size_bytes: Callable[[], int | None]  # compressed, as far as they were read; None: not known
    max_ratio: float
    around: "Budget | None" = None
    expanded_bytes: int = 0

    def spend(self, size_bytes: int) -> None:
        """Count expanded bytes. Raises: BadRecord: reason `zip_bomb`."""
        self.expanded_bytes += size_bytes
        packed, limit = self.size_bytes(), MAX_EXPANDED_BYTES
        if packed is not None:
            limit = min(limit, SLACK_BYTES + int(self.max_ratio * packed))
        if self.expanded_bytes > limit:
            raise BadRecord(
                "zip_bomb", f"{packed} bytes expand to more than {limit}; max_expand_ratio is {self.max_ratio:g}"
            )
        if self.around is not None:
            self.around.spend(size_bytes)


class Metered(io.RawIOBase):
    """A stream that counts what a decompressor takes from it."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.count = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = self.stream.readinto1(buffer)
        self.count += size
        return size


class Unpacked(io.RawIOBase):
    """What a decompressor or an archive yields, counted against a budget; an error comes after the last good byte."""

    def __init__(self, pull: Callable[[int], bytes], kind: str, budget: Budget | None) -> None:
        self.pull, self.kind, self.budget = pull, kind, budget
        self.error: BadRecord | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as there are bytes, so that the first look at a file sees enough of it."""
        filled = 0
        while filled < len(buffer) and self.error is None:
            try:
                chunk = self.pull(len(buffer) - filled)
            except BadRecord as error:  # from a layer further out
                self.error = error
            except PARSE_ERRORS as error:
                self.error = BadRecord(f"corrupt_{self.kind}", f"{type(error).__name__}: {error}")
            else:
                if not chunk:
                    break
                if self.budget is not None:
                    self.budget.spend(len(chunk))
                buffer[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        if self.error is not None and filled == 0:
            raise self.error
        return filled
