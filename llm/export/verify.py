"""Checksums of a release folder: written when it is packaged, checked before it is served.

`python -m llm.export.verify DIR` names every file that differs and exits with 1 if there is one. The checksums
tell damage and careless edits; who can replace SHA256SUMS can replace the rest too.
"""

import hashlib
import sys
from pathlib import Path

from llm.config import ConfigError, require

SUMS = "SHA256SUMS"


def list_files(folder: Path) -> list[str]:
    """Return the names of all files in a folder, sorted, without the checksums' own."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != SUMS)


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS in the form of sha256sum, which can check it too."""
    lines = [f"{digest_file(folder / name)}  {name}\n" for name in list_files(folder)]
    (folder / SUMS).write_text("".join(lines))


def verify(folder: Path) -> list[str]:
    """Return what differs from SHA256SUMS: `name (changed)`, `name (missing)` or `name (not listed)`.

    Raises: ConfigError: there is no SHA256SUMS, or a line of it is not a digest and a name.
    """
    path = folder / SUMS
    require(path.is_file(), f"{path}: no such file; is {folder} a release? `make run` packages one")
    expected: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        digest, separator, name = line.partition("  ")
        require(bool(separator) and len(digest) == 64, f"{path}:{number}: expected a SHA-256, two spaces and a name")
        expected[name] = digest
    present = set(list_files(folder))
    wrong = [f"{name} (missing)" for name in sorted(expected.keys() - present)]
    wrong += [f"{name} (not listed)" for name in sorted(present - expected.keys())]
    for name in sorted(present & expected.keys()):
        if digest_file(folder / name) != expected[name]:
            wrong.append(f"{name} (changed)")
    return wrong


def release_hash(folder: Path) -> str:
    """Return 16 hex digits of BLAKE2b over the sorted names and digests of a folder's files: its fingerprint."""
    digest = hashlib.blake2b(digest_size=8)
    for name in list_files(folder):
        digest.update(f"{digest_file(folder / name)}  {name}\n".encode())
    return digest.hexdigest()


def main(arguments: list[str]) -> int:
    """Check the folder named on the command line."""
    if len(arguments) != 1:
        print("usage: python -m llm.export.verify DIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        wrong = verify(folder)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{folder}: {len(list_files(folder))} files agree with {SUMS}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
