"""Measure what is found on labelled text: `python -m llm.data.pii.report FILE.json`.

The file is a list of {"full_text", "spans": [{"entity_type", "start_position", "end_position"}]}, as presidio-research
writes it. A finding is right when it overlaps a labelled span of its type by at least one character; a labelled span is
found when a finding of its type overlaps it. `masked` counts the labelled spans that a finding of any type overlaps.
Every type of the file is reported; those without a pattern have no precision, and a recall of 0.
The last line is a JSON object.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.data.pii.find import Span, find_pii

# The names of labelled sets -> ours.
PATTERNS = {
    "EMAIL_ADDRESS": "email",
    "IP_ADDRESS": "ip",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "credit_card",
    "IBAN_CODE": "iban",
    "US_SSN": "ssn",
}


@dataclass
class Score:
    """Counts of one type: labelled spans and those found, findings and those that are right."""

    labelled: int = 0
    found: int = 0
    masked: int = 0
    findings: int = 0
    right: int = 0

    @property
    def recall(self) -> float | None:
        """found / labelled; None without a labelled span."""
        return self.found / self.labelled if self.labelled else None

    @property
    def precision(self) -> float | None:
        """right / findings; None without a finding."""
        return self.right / self.findings if self.findings else None


def measure_pii(rows: Iterable[tuple[str, Sequence[Span]]]) -> dict[str, Score]:
    """Return the score of every type that is labelled or found; `rows` are texts and their labelled spans."""
    scores: dict[str, Score] = {}
    names = {ours: theirs for theirs, ours in PATTERNS.items()}
    for text, labelled in rows:
        found = [Span(names.get(one.type, one.type), one.start, one.end) for one in find_pii(text)]
        for gold in labelled:
            score = scores.setdefault(gold.type, Score())
            score.labelled += 1
            score.found += any(one.type == gold.type and overlap(one, gold) for one in found)
            score.masked += any(overlap(one, gold) for one in found)
        for one in found:
            score = scores.setdefault(one.type, Score())
            score.findings += 1
            score.right += any(one.type == gold.type and overlap(one, gold) for gold in labelled)
    return dict(sorted(scores.items()))


def overlap(one: Span, other: Span) -> bool:
    """Tell whether two spans share a character."""
    return one.start < other.end and other.start < one.end


def read_labelled(path: Path) -> list[tuple[str, list[Span]]]:
    """Return the texts of a file with their spans. Raises ConfigError when it is of another form."""
    require(path.is_file(), f"{path}: no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(str(row["full_text"]), [_read_span(one) for one in row["spans"]]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected a JSON list of {{full_text, spans}}: {error!r}") from None


def _read_span(one: Mapping[str, Any]) -> Span:
    return Span(str(one["entity_type"]), int(one["start_position"]), int(one["end_position"]))


def main() -> None:
    """Print a table and the same as JSON."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m llm.data.pii.report FILE.json")
    try:
        scores = measure_pii(read_labelled(Path(sys.argv[1])))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print(f"{'type':20} {'labelled':>8} {'recall':>7} {'masked':>7} {'findings':>8} {'precision':>9}")
    for name, one in scores.items():
        rates = [_format(rate) for rate in (one.recall, one.precision)]
        note = "" if name in PATTERNS or one.findings else "  no pattern"
        print(f"{name:20} {one.labelled:8} {rates[0]:>7} {one.masked:7} {one.findings:8} {rates[1]:>9}{note}")
    print(
        json.dumps(
            {name: {**asdict(one), "recall": one.recall, "precision": one.precision} for name, one in scores.items()}
        )
    )


def _format(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.3f}"


if __name__ == "__main__":
    main()
