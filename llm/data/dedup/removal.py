"""Records that must not be in the corpus any more, by id.

A record that is merely left out of dedup lets its next copy in. So excluded records take part in dedup, before all
others (llm.data.corpus): their copies then name them, exactly or nearly, and go with them.
"""

import re
from collections.abc import Iterable

from llm.config import ConfigError

_ID = re.compile(r"[0-9a-f]{32}")
_SHOWN = 10


def check_ids(entries: Iterable[str]) -> frozenset[str]:
    """Return the ids, or raise ConfigError that names every entry that is none."""
    ids = frozenset(entry.strip().lower() for entry in entries)
    faults = [repr(entry) for entry in sorted(ids) if not is_id(entry)]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ConfigError(
            f"clean.exclude_ids: {', '.join(faults[:_SHOWN])}{more}: no id. One has 32 hexadecimal digits, as in the "
            "column `id` of data/clean; `python -m llm.export.holders 'a sentence of it'` finds it"
        )
    return ids


def is_id(entry: str) -> bool:
    """Say whether a string has the form of a record's id."""
    return _ID.fullmatch(entry.strip().lower()) is not None


def describe_exclusion(excluded: Iterable[str], found: Iterable[str]) -> dict[str, object]:
    """Return how many ids were asked for and found among the records, and the first of those that were not."""
    asked = set(excluded)
    unknown = sorted(asked.difference(found))
    return {"asked": len(asked), "found": len(asked) - len(unknown), "unknown": unknown[:_SHOWN]}
