"""Clean: raw records -> clean ones with a split, and a named reason for each record that was dropped.

Same inputs and params give identical bytes. Input equals kept plus rejects, for every kind of record.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from llm.config import StageParams, require
from llm.data.cleaner import (
    KINDS,
    Ledger,
    clean_conversations,
    clean_documents,
    clean_preferences,
    clean_questions,
)
from llm.data.dedup import NearDuplicateParams, key_words
from llm.data.filters import FilterParams
from llm.data.schema import (
    Conversation,
    Document,
    Preference,
    Question,
    R,
    Records,
    Reject,
    read_rows,
    write_rows,
)
from llm.data.split import VAL, assign_splits, choose_surplus, find_seen, reading_order
from stages.plumbing.stage import Paths, main


class Params(StageParams):
    holdout: float = Field(
        0.12, gt=0, lt=1, description="share of groups (packages, passages) that are held out, by hash of the name"
    )
    max_val_bytes: int = Field(
        1_000_000, ge=1, description="bytes of held-out text that are kept; the rest is rejected, not trained on"
    )
    filters: FilterParams = Field(default_factory=FilterParams, description="what a text must measure")
    near: NearDuplicateParams = Field(default_factory=NearDuplicateParams, description="when two texts count as one")


def run(params: Params, paths: Paths) -> dict[str, object]:
    raw = list_raw(paths)
    ledger = Ledger()
    records = Records(
        clean_documents(read_raw(raw, Document), params.filters, params.near, ledger),
        clean_conversations(read_raw(raw, Conversation), ledger),
        clean_preferences(read_raw(raw, Preference), ledger),
        clean_questions(read_raw(raw, Question), ledger),
    )
    require(bool(records.documents), "data/raw: no document passed clean.filters; see data/rejects, or add text")
    records.documents.sort(key=reading_order)
    splits = split_groups(records, params.holdout)
    hold_out(records, splits, params.max_val_bytes, ledger)
    for kind, count in records.counts().items():
        lost = sum(one.kind == kind for one in ledger.rejects)
        assert ledger.inputs[kind] == count + lost, f"{kind}: {ledger.inputs[kind]} in, {count} + {lost} out"
    write(records, splits, ledger, paths)
    return measure(records, splits, ledger)


def list_raw(paths: Paths) -> list[Path]:
    """Return the folders of the sources that params name; what an earlier source left behind is not read."""
    root = paths.deps["data/raw"]
    names = sorted(paths.sources) or sorted(one.name for one in root.iterdir() if one.is_dir())
    missing = [name for name in names if not (root / name / "documents.parquet").exists()]
    require(not missing, f"data/raw: {', '.join(missing)} not ingested yet; run `dvc repro` (make run)")
    return [root / name for name in names]


def read_raw(folders: list[Path], record: type[R]) -> Iterator[R]:
    """Yield the records of one kind of all sources."""
    for folder in folders:
        yield from read_rows(folder / f"{KINDS[record]}.parquet", record)  # type: ignore[index]


def split_groups(records: Records, holdout: float) -> dict[str, str]:
    """Return group -> split; text, talk, pairs and questions of one group are on the same side."""
    kinds = (records.documents, records.conversations, records.preferences, records.questions)
    groups = {one.group for rows in kinds for one in rows}
    return assign_splits(groups, holdout, (one.group for one in records.documents))


def hold_out(records: Records, splits: dict[str, str], max_val_bytes: int, ledger: Ledger) -> None:
    """Drop held-out text beyond the cap, and held-out questions whose answer stands in the training records."""
    held = [one for one in records.documents if splits[one.group] == VAL]
    surplus = choose_surplus(held, max_val_bytes)
    for one in held:
        if one.id in surplus:
            ledger.reject(one, "held_out_surplus", f"clean.max_val_bytes is {max_val_bytes}")
    records.documents = [one for one in records.documents if one.id not in surplus]

    held_questions = [one for one in records.questions if splits[one.group] == VAL]
    seen = find_seen(train_texts(records, splits), (one.options[one.answer] for one in held_questions))
    # The four questions on the same options go together: only whole fours are without a clue.
    known = {frozenset(one.options) for one in held_questions if key_words(one.options[one.answer]) in seen}
    kept = []
    for question in records.questions:
        if splits[question.group] == VAL and frozenset(question.options) in known:
            ledger.reject(question, "seen_in_training", "an answer of its four stands in a training record")
        else:
            kept.append(question)
    records.questions = kept


def train_texts(records: Records, splits: dict[str, str]) -> Iterator[str]:
    """Yield every text that a training stage may see."""
    yield from (one.text for one in records.documents if splits[one.group] != VAL)
    yield from (m["content"] for one in records.conversations if splits[one.group] != VAL for m in one.messages)
    for pair in records.preferences:
        if splits[pair.group] != VAL:
            yield from (pair.chosen, pair.rejected)


def write(records: Records, splits: dict[str, str], ledger: Ledger, paths: Paths) -> None:
    """Write the four clean files and the rejects."""
    clean, rejects = paths.outs["data/clean"], paths.outs["data/rejects"]
    clean.mkdir(parents=True, exist_ok=True)
    rejects.mkdir(parents=True, exist_ok=True)
    write_rows(clean / "documents.parquet", Document, records.documents, splits)
    write_rows(clean / "conversations.parquet", Conversation, records.conversations, splits)
    write_rows(clean / "preferences.parquet", Preference, records.preferences, splits)
    write_rows(clean / "questions.parquet", Question, records.questions, splits)
    ledger.rejects.sort(key=lambda one: (one.kind, one.reason, one.id, one.detail))
    write_rows(rejects / "rejects.parquet", Reject, ledger.rejects)


def measure(records: Records, splits: dict[str, str], ledger: Ledger) -> dict[str, object]:
    """Return counts of what came in, was kept and was dropped, by kind, source, split and reason."""
    rejected: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS.values()}
    sources: dict[str, Counter[str]] = {}
    for reject in ledger.rejects:
        rejected[reject.kind][reject.reason] += 1
        sources.setdefault(reject.source, Counter())["rejected"] += 1
    split_counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS.values()}
    for kind, rows in vars(records).items():
        for row in rows:
            split_counts[kind][splits[row.group]] += 1
            sources.setdefault(row.source, Counter())["kept"] += 1
    size_bytes: Counter[str] = Counter()
    for document in records.documents:
        size_bytes[splits[document.group]] += len(document.text.encode())
    return {
        "input": dict(ledger.inputs),
        "kept": records.counts(),
        "rejected": {kind: dict(counts) for kind, counts in rejected.items()},
        "splits": {kind: dict(counts) for kind, counts in split_counts.items()},
        "sources": {source: dict(counts) for source, counts in sources.items()},
        "bytes": dict(size_bytes),
        "placeholders": {"email": ledger.emails, "ip": ledger.addresses},
    }


if __name__ == "__main__":
    main(Params, run)
