"""Find the files of a local path, glob or fsspec URL, sorted by name, and open them one by one.

Names are relative to the source, never absolute. Dot files are left out.
"""

import glob
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from llm.config import ConfigError, require
from llm.data.sources.items import Fault, Skip, Stream

HEAD_BYTES = 1 << 16  # what a reader sees of a file before it is chosen
Located = tuple[str, int | None, io.BufferedReader | Fault | Skip]


def is_url(locator: str) -> bool:
    """Say whether a locator is an fsspec URL, such as s3://bucket/folder, rather than a local path."""
    return "://" in locator


def open_files(locator: str) -> Iterator[Located]:
    """Yield (name within the source, size if known, stream or what is wrong) for each file of the source.

    Raises: ConfigError: nothing is there, or the protocol has no driver here.
    """
    if not is_url(locator):
        yield from _open_local(Path(locator).expanduser())
        return
    protocol = locator.split("://")[0].split("::")[0]
    if protocol in ("file", "local"):
        yield from _open_local(Path(fsspec.filesystem("file")._strip_protocol(locator)))
        return
    filesystem, path = _connect(locator)
    yield from _open_remote(filesystem, path, locator)


def _open_local(path: Path) -> Iterator[Located]:
    if path.is_file():
        found, root = [path], path.parent
    elif path.is_dir():
        found, root = sorted(_walk_folder(path)), path
    else:
        found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True)) if not Path(one).is_dir()]
        require(bool(found), f"{path}: no such file or folder, and nothing matches it as a glob")
        root = Path(os.path.commonpath([one.parent for one in found]))
    require(bool(found), f"{path}: holds no files")
    for one in found:
        yield (one.relative_to(root).as_posix().encode("utf-8", "replace").decode("utf-8"), *_open_local_path(one))


def _walk_folder(folder: Path) -> Iterator[Path]:
    """Yield files, and also what cannot be entered: links to folders and folders that cannot be listed."""
    unlisted: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(where, name).is_symlink()]
        yield from (Path(where) / name for name in [*names, *links] if not name.startswith("."))
    yield from unlisted


def _open_local_path(path: Path) -> tuple[int | None, Stream | Fault | Skip]:
    try:
        about = path.stat()
        if path.is_symlink() and stat.S_ISDIR(about.st_mode):
            return None, Skip("link to a folder")
        if stat.S_ISDIR(about.st_mode):
            return None, Fault(0, "unreadable", "the folder cannot be listed")
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for ever
            return None, Fault(0, "not_a_file", "a device, pipe or socket")
        return about.st_size, io.BufferedReader(path.open("rb", buffering=0), HEAD_BYTES)
    except FileNotFoundError:
        return None, Fault(0, "dangling_link", "the link leads nowhere")
    except OSError as error:
        return None, Fault(0, "unreadable", error.strerror or type(error).__name__)


def _connect(locator: str) -> tuple[Any, str]:
    """Return the filesystem of a URL and the path in it."""
    protocol = locator.split("://")[0].split("::")[-1]
    try:
        filesystem, path = url_to_fs(locator)
    except ImportError as error:
        hint = known_implementations.get(protocol, {}).get("err", str(error))
        raise ConfigError(f"{locator}: no driver for {protocol}:// is installed. {hint}") from error
    except ValueError as error:
        raise ConfigError(
            f"{locator}: {error}; fsspec knows {', '.join(sorted(known_implementations))}, each by its own package"
        ) from error
    return filesystem, path


def _open_remote(filesystem: Any, path: str, locator: str) -> Iterator[Located]:
    try:
        paths = _list_remote(filesystem, path)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{locator}: cannot be listed ({type(error).__name__}: {first})") from error
    require(bool(paths), f"{locator}: no such file or folder, and nothing matches it as a glob")
    root = PurePosixPath(os.path.commonpath([PurePosixPath(one).parent for one in paths]))
    if len(paths) > 1 and not glob.has_magic(path):
        root = PurePosixPath(path)
    for one in paths:
        name = PurePosixPath(one).relative_to(root).as_posix() if len(paths) > 1 else _base_name(one)
        yield (name, *_open_remote_path(filesystem, one))


def _open_remote_path(filesystem: Any, path: str) -> tuple[int | None, Stream | Fault]:
    try:
        raw = filesystem.open(path, "rb")
        return getattr(raw, "size", None) or filesystem.size(path), io.BufferedReader(raw, HEAD_BYTES)
    except Exception as error:  # noqa: BLE001 - as above; the other files may be readable
        return None, Fault(0, "unreadable", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def _list_remote(filesystem: Any, path: str) -> list[str]:
    """Return the sorted paths of a file, a folder or a glob; a web address is one file."""
    if path.startswith(("http://", "https://")):
        return [path]
    if filesystem.isfile(path):
        return [path]
    found = filesystem.glob(path) if glob.has_magic(path) else filesystem.find(path)
    files = [one for one in found if filesystem.isfile(one)] if glob.has_magic(path) else found
    return sorted(one for one in files if not any(p.startswith(".") for p in PurePosixPath(one).parts))


def _base_name(path: str) -> str:
    """Return the last part of a path or web address, without a query."""
    return unquote(PurePosixPath(urlsplit(path).path).name) or "index"
