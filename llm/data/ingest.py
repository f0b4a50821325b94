"""Write the outcomes of a source to disk, and stop when too many of its records are rejected."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.data.questions import ContinuationSample
from llm.data.schema import Document, Record, Records, RecordWriter
from llm.data.sources.read import Kept, Outcome, Rejected
from llm.progress import track

FIRST_CHECK = 1_000  # records before the share of rejects says anything
EXAMPLES = 3


@dataclass
class Tally:
    """What became of the records so far, with examples of each reason."""

    max_reject_rate: float
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    boilerplate: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if isinstance(outcome, Kept):
            self.kept += 1
            self.formats[outcome.format] += 1
            self.boilerplate.update([outcome.removed] if outcome.removed else [])
        elif isinstance(outcome, Rejected):
            self.reasons[outcome.reason] += 1
            shown = self.examples.setdefault(outcome.reason, [])
            if len(shown) < EXAMPLES:
                where = f"{outcome.file}, {outcome.offset}" if outcome.offset else outcome.file
                shown.append(f"{where}: {outcome.error[:200]}")
        else:
            self.passed_over[outcome.what] += 1

    def exceeds(self) -> bool:
        """Say whether too large a share of the records so far was rejected."""
        rejected = self.reasons.total()
        return rejected > self.max_reject_rate * (self.kept + rejected)

    def explain(self) -> str:
        """Return the reasons by count, each with examples."""
        lines = []
        for reason, count in self.reasons.most_common(5):
            lines.append(f"  {reason}: {count:,}")
            lines += [f"    {example}" for example in self.examples[reason]]
        lines += [f"  passed over: {what} ({count:,})" for what, count in self.passed_over.most_common(5)]
        return "\n".join(lines)


def write_outcomes(
    outcomes: Iterable[Outcome], folder: Path, source: str, locator: str, max_reject_rate: float
) -> dict[str, Any]:
    """Write a source's records in the order of reading, with questions on its documents, its rejects and its ledger.

    Raises: ConfigError: nothing is usable, or more than `max_reject_rate` of the records are rejected.
    """
    writer, tally, sample = RecordWriter(folder, source), Tally(max_reject_rate), ContinuationSample(source)
    try:
        for outcome in track(outcomes, f"reading {source}"):
            tally.add(outcome)
            if isinstance(outcome, Kept):
                writer.add(outcome.records)
                sample.add(one for one in outcome.records if isinstance(one, Document))
            elif isinstance(outcome, Rejected):
                writer.reject(outcome.file, outcome.offset, outcome.reason, outcome.error)
                if tally.kept + tally.reasons.total() >= FIRST_CHECK and tally.exceeds():
                    break
        writer.derive(sample.take())
    finally:
        ledger = writer.close()
    _require_usable(tally, source, locator, folder)
    assert ledger["input"] == tally.kept + tally.reasons.total(), (ledger, tally)
    return {
        "records": writer.counts,
        "document_bytes": writer.document_bytes,
        "ledger": ledger,
        "passed_over": dict(sorted(tally.passed_over.items())),
        "formats": dict(sorted(tally.formats.items())),
        "boilerplate": dict(sorted(tally.boilerplate.items())),
    }


def _require_usable(tally: Tally, source: str, locator: str, folder: Path) -> None:
    rejected = tally.reasons.total()
    require(tally.kept > 0, f"{locator}: holds no usable record\n{tally.explain()}".rstrip())
    if tally.exceeds():
        raise ConfigError(
            f"ingest.sources.{source}: {rejected:,} of the first {tally.kept + rejected:,} records of {locator} are "
            f"rejected, a share above ingest.max_reject_rate {tally.max_reject_rate:g}\n{tally.explain()}\n"
            f"Look at them with make preview SOURCE={locator}; mend the source, or raise ingest.max_reject_rate. "
            f"All of them are in {folder / 'rejects.parquet'}"
        )


def write_records(records: Records, folder: Path, source: str) -> dict[str, Any]:
    """Write records that were built here, sorted by id; each but the questions is an input record."""
    writer = RecordWriter(folder, source)
    kept: list[list[Any]] = [records.documents, records.conversations, records.preferences]
    for rows in kept:
        ordered: list[Record] = sorted(rows, key=lambda row: row.id)
        for row in ordered:
            writer.add([row])
    writer.derive(sorted(records.questions, key=lambda row: row.id))
    return {"ledger": writer.close(), "records": writer.counts, "document_bytes": writer.document_bytes}
