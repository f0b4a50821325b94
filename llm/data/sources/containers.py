"""Walk a source down to its plain files: through gz, bz2, xz and zst, and through nested zip and tar, by content.

Nothing is written to disk. A member is rejected, and its neighbours are kept, when its name leads out of the
archive, it is a link, it is encrypted or damaged, or it expands beyond all proportion (a zip bomb).
"""

import bz2
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, Self

import pyarrow as pa

from llm.data.schema import BadRecord
from llm.data.sources.expansion import PARSE_ERRORS, SLACK_BYTES, Budget, Metered, Unpacked
from llm.data.sources.items import Fault, Skip, Stream
from llm.data.sources.locations import HEAD_BYTES, open_files

MAX_DEPTH = 6  # layers around a file; books.zip/part.tar.gz/a.txt has three
MAX_BUFFER_BYTES = 256_000_000  # of a file in an archive that must be read from its end, such as a zip within a zip
Opened = tuple[str, Stream | Fault | Skip]

_MAGIC = {
    "gz": b"\x1f\x8b\x08",
    "xz": b"\xfd7zXZ\0",
    "zst": b"\x28\xb5\x2f\xfd",
    "zip": b"PK\x03\x04",
    "empty zip": b"PK\x05\x06",
}
_BZ2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
# Office documents, e-books and programs are zip files whose members are no texts.
_PACKAGES = {"[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF", "AndroidManifest.xml"}


class _StrictHeader(tarfile.TarInfo):
    """A damaged header in the middle is an error; tarfile takes it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if buf and len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("truncated header")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf):  # the end: zero bytes, or none
                raise
            raise tarfile.ReadError(f"damaged header: {error}") from error


def walk_source(locator: str, max_ratio: float) -> Iterator[Opened]:
    """Yield (name within the source, stream or what is wrong) for each plain file; read one before taking the next.

    Raises: ConfigError: there is nothing at the locator, or no driver for its protocol.
    """
    for name, size_bytes, opened in open_files(locator):
        if isinstance(opened, Fault | Skip):
            yield name, opened
            continue
        with opened:
            yield from unpack(name, opened, _limit(size_bytes, max_ratio))


def unpack(name: str, stream: Stream, budget: Budget, depth: int = 0) -> Iterator[Opened]:
    """Yield the plain files within a stream: itself, if it is neither compressed nor an archive."""
    kind = ""
    try:
        head = stream.peek(HEAD_BYTES)
        kind = find_kind(head, name)
        if not head:
            yield name, Fault(0, "empty", "the file holds no bytes")
        elif not kind:
            yield name, stream
        elif depth == MAX_DEPTH:
            yield name, Fault(0, "nested_too_deep", f"more than {MAX_DEPTH} layers of compression and archives")
        elif kind == "zip":
            yield from _walk_zip(name, stream, budget, depth)
        elif kind == "tar":
            yield from _walk_tar(name, stream, budget, depth)
        else:
            packed = Metered(stream)
            part = Budget(lambda: packed.count, budget.max_ratio, budget)
            with io.BufferedReader(Unpacked(_open_layer(kind, packed), kind, part), HEAD_BYTES) as layer:
                yield from unpack(name, layer, part, depth + 1)
    except BadRecord as error:
        yield name, Fault(0, error.reason, error.detail)
    except PARSE_ERRORS as error:
        yield name, Fault(0, f"corrupt_{kind}" if kind else "unreadable", f"{type(error).__name__}: {error}")


def find_kind(head: bytes, name: str) -> str:
    """Return gz, bz2, xz, zst, zip or tar, or "" for a plain file."""
    if _BZ2.match(head):
        return "bz2"
    if head[257:262] == b"ustar" or (name.lower().endswith(".tar") and len(head) >= tarfile.BLOCKSIZE):
        return "tar"
    return next((kind.removeprefix("empty ") for kind, magic in _MAGIC.items() if head.startswith(magic)), "")


def _limit(size_bytes: int | None, max_ratio: float, around: Budget | None = None) -> Budget:
    return Budget(lambda: size_bytes, max_ratio, around)


def _open_layer(kind: str, stream: Metered) -> Callable[[int], bytes]:
    """Return how to take at most n decompressed bytes; members and frames that follow each other are one stream."""
    if kind == "gz":
        return gzip.GzipFile(fileobj=io.BufferedReader(stream)).read1
    if kind == "bz2":
        return bz2.BZ2File(io.BufferedReader(stream)).read1
    if kind == "xz":
        return lzma.LZMAFile(io.BufferedReader(stream)).read1
    frames = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
    return lambda size: frames.read(min(size, 4096))  # an error loses what was asked for with it


def as_seekable(stream: Stream) -> BinaryIO:
    """Return a stream that can be read from its end: itself, or what it holds, in memory.

    Raises: BadRecord: reason `too_large`.
    """
    if stream.seekable():
        return stream
    content = stream.read(MAX_BUFFER_BYTES + 1)
    if len(content) > MAX_BUFFER_BYTES:
        raise BadRecord("too_large", f"over {MAX_BUFFER_BYTES} bytes to be read from the end: unpack the archive")
    return io.BytesIO(content)


def _walk_zip(name: str, stream: Stream, budget: Budget, depth: int) -> Iterator[Opened]:
    with zipfile.ZipFile(as_seekable(stream)) as archive:
        infos = archive.infolist()
        if any(info.filename in _PACKAGES for info in infos):
            raise BadRecord("unsupported_format", "an office document, e-book or program")
        for info in infos:
            inner = f"{name}/{_printable(info.filename)}"
            if info.is_dir():
                continue
            mode = info.external_attr >> 16
            if refused := _refuse_name(info.filename):
                yield inner, refused
            elif stat.S_ISLNK(mode):
                yield inner, Fault(0, "link", "a link within an archive is not followed")
            elif info.flag_bits & 1:
                yield inner, Fault(0, "encrypted", "the archive wants a password")
            else:
                part = _limit(info.compress_size, budget.max_ratio, budget)
                try:
                    if info.file_size > SLACK_BYTES + budget.max_ratio * info.compress_size:
                        part.spend(info.file_size)  # as it says itself: nothing of it is read
                    with archive.open(info) as member:
                        assert isinstance(member, zipfile.ZipExtFile), member
                        pulled = io.BufferedReader(Unpacked(member.read1, "zip", part), HEAD_BYTES)
                        yield from unpack(inner, pulled, part, depth + 1)
                except BadRecord as error:
                    yield inner, Fault(0, error.reason, error.detail)
                except PARSE_ERRORS as error:
                    yield inner, Fault(0, "corrupt_zip", f"{type(error).__name__}: {error}")
                budget.spend(0)  # the archive as a whole may have expanded too far


def _walk_tar(name: str, stream: Stream, budget: Budget, depth: int) -> Iterator[Opened]:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it remembers every member
            inner = f"{name}/{_printable(info.name.removeprefix('./'))}"
            if info.isdir():
                continue
            if refused := _refuse_name(info.name):
                yield inner, refused
            elif info.issym() or info.islnk():
                yield inner, Fault(0, "link", "a link within an archive is not followed")
            elif not info.isfile():
                yield inner, Fault(0, "not_a_file", "a device, pipe or socket")
            else:
                member = archive.extractfile(info)
                assert member is not None, info.name
                pulled = io.BufferedReader(Unpacked(member.read, "tar", None), HEAD_BYTES)
                yield from unpack(inner, pulled, budget, depth + 1)


def _printable(name: str) -> str:
    """Return a member's name with what is no valid Unicode replaced."""
    return name.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _refuse_name(name: str) -> Fault | Skip | None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or re.match(r"[A-Za-z]:", name):
        return Fault(0, "unsafe_name", "the name leads out of the archive")
    if parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
        return Skip("hidden file")
    return None
