"""Records that must not be in the corpus any more: the ids that a user names, and what goes with them.

A record that is merely left out of dedup lets its next copy in. So excluded records take part in dedup, before all
others (`put_first`): their copies then name them, exactly or nearly, and go with them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm.config import ConfigError

_ID = re.compile(r"[0-9a-f]{32}")
_SHOWN = 10


def load_excluded(entries: Sequence[str], root: Path = Path()) -> frozenset[str]:
    """Return the ids that the entries name: ids themselves, or files with one id per line and `#` before comments.

    Raises: ConfigError: names every entry and line that is neither, at once.
    """
    ids: set[str] = set()
    faults: list[str] = []
    for entry in entries:
        if is_id(entry):
            ids.add(entry.strip().lower())
        elif (root / entry).is_file():
            found, wrong = _read_ids(root / entry)
            ids |= found
            faults += [f"{entry}, {fault}" for fault in wrong]
        else:
            faults.append(f"{entry!r} is neither an id nor a file")
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ConfigError(
            f"clean.exclude_ids: {'; '.join(faults[:_SHOWN])}{more}. An id has 32 hexadecimal digits, as in the "
            "column `id` of data/clean; `python -m llm.export.holders 'a sentence of it'` finds it"
        )
    return frozenset(ids)


def is_id(entry: str) -> bool:
    """Say whether a string has the form of a record's id."""
    return _ID.fullmatch(entry.strip().lower()) is not None


def _read_ids(path: Path) -> tuple[set[str], list[str]]:
    """Return the ids of a file, and what is wrong with its other lines."""
    ids: set[str] = set()
    faults: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if is_id(entry):
            ids.add(entry.lower())
        elif entry:
            faults.append(f"line {number}: {entry[:40]!r} is no id")
    return ids, faults


def put_first(order: NDArray[np.int64], excluded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rows in an order in which the excluded ones come first, and otherwise as before."""
    return np.concatenate([order[excluded[order]], order[~excluded[order]]])


def describe_exclusion(excluded: Iterable[str], seen: Iterable[str]) -> dict[str, object]:
    """Return how many ids were asked for and found among the records, and the first of those that were not."""
    asked = set(excluded)
    unknown = sorted(asked.difference(seen))
    return {"asked": len(asked), "found": len(asked) - len(unknown), "unknown": unknown[:_SHOWN]}
