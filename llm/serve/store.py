"""Small JSON files that nobody but their owner can read: replaced whole, and changed by one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Make the file's folder, and wait until no other process changes the file.

    The lock is a file of its own, because the file itself is replaced.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str, *, sync: bool) -> None:
    """Replace the file, whose lock is held; a crash leaves the old content or the new. `sync` waits for the disk."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf8") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(descriptor)
    os.replace(partial, path)
