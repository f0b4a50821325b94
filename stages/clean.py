"""Clean: raw records -> clean ones with a split, and a named reason for each record that was dropped.

Same inputs and params give identical bytes. Input equals kept plus rejects, for every kind of record. Documents,
conversations and preferences are streamed; questions, of which ingest keeps a bounded sample, are held in memory.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from llm.config import StageParams, require
from llm.data.cleaner import Rules
from llm.data.corpus import Corpus, Ledger
from llm.data.dedup.banding import describe_threshold
from llm.data.dedup.duplicates import key_words
from llm.data.dedup.evaluation_index import DecontaminateParams, EvaluationIndex, EvaluationText, build_index
from llm.data.dedup.minhash import NearDuplicateParams
from llm.data.dedup.removal import check_ids, describe_exclusion
from llm.data.filters.judge import FilterParams
from llm.data.parallel import map_ordered
from llm.data.pii.find import PIIParams
from llm.data.schema import RAW_KINDS, ROW_GROUP_ROWS, Question, Reject, iter_rows, to_json, write_rows
from llm.data.split import TRAIN, VAL, Splits, Surplus, find_seen
from llm.data.text.normalise import normalise_text
from llm.progress import track
from stages.plumbing.stage import Paths, main


class Params(StageParams):
    holdout: float = Field(
        0.12, gt=0, lt=1, description="share of groups (packages, passages) that are held out, by hash of the name"
    )
    max_val_bytes: int = Field(
        1_000_000, ge=1, description="bytes of held-out text that are kept; the rest is rejected, not trained on"
    )
    exclude_ids: list[str] = Field(
        default_factory=list, description="ids of records to remove, with their copies and what was made from them"
    )
    filters: FilterParams = Field(default_factory=FilterParams, description="what a text must measure")
    pii: PIIParams = Field(default_factory=PIIParams, description="which personal data and secrets are replaced")
    near: NearDuplicateParams = Field(default_factory=NearDuplicateParams, description="when two texts count as one")
    decontaminate: DecontaminateParams = Field(
        default_factory=DecontaminateParams, description="how long a passage of an evaluation set rejects a text"
    )


def run(params: Params, paths: Paths) -> dict[str, object]:
    raw = list_raw(paths, paths.sources)
    ledger = Ledger()
    excluded, evaluation = check_ids(params.exclude_ids), read_evaluation(params, paths)
    rules = Rules(params.filters, params.near, params.pii, excluded, evaluation, params.decontaminate)
    corpora = {kind: Corpus(kind, paths.scratch, rules) for kind in RAW_KINDS}
    for kind, corpus in corpora.items():
        corpus.collect([folder / f"{kind}.parquet" for folder in raw], params.base.threads, ledger)
    documents, questions = corpora["documents"], corpora["questions"]
    require(bool(documents.keep_N.any()), "data/raw: no document passed clean.filters; see data/rejects, or add text")
    splits = Splits(params.holdout, set(documents.kept_groups()))
    drop_repeated(questions, ledger)
    drop_seen(questions, corpora, splits, params.base.threads, ledger)
    counts = Counts()
    clean, rejects = paths.outs["data/clean"], paths.outs["data/rejects"]
    for kind, corpus in corpora.items():
        surplus = Surplus(params.max_val_bytes) if kind == "documents" else None
        write_corpus(corpus, splits, clean / f"{kind}.parquet", counts, ledger, surplus)
        lost = sum(one.kind == kind for one in ledger.rejects)
        assert ledger.inputs[kind] == counts.splits[kind].total() + lost, (
            f"{kind}: {ledger.inputs[kind]} in, {lost} lost"
        )
    rejects.mkdir(parents=True, exist_ok=True)
    ledger.rejects.sort(key=lambda one: (one.kind, one.reason, one.id, one.detail))
    write_rows(rejects / "rejects.parquet", Reject, ledger.rejects)
    metrics = measure(counts, ledger) | {"near_duplicates": describe_threshold(params.near)}
    if excluded:
        metrics["excluded"] = describe_exclusion(excluded, (one.id for one in ledger.rejects))
    return metrics


def list_raw(paths: Paths, names: Iterable[str]) -> list[Path]:
    """Return the folders of the sources that params name; what an earlier source left behind is not read."""
    root = paths.deps["data/raw"]
    names = sorted(names) or sorted(one.name for one in root.iterdir() if one.is_dir())
    missing = [name for name in names if not (root / name / "documents.parquet").exists()]
    require(not missing, f"data/raw: {', '.join(missing)} not ingested yet; run `dvc repro` (make run)")
    return [root / name for name in names]


def read_evaluation(params: Params, paths: Paths) -> EvaluationIndex | None:
    """Return the passages of the evaluation sources, or None where there are none."""
    folders = list_raw(paths, paths.evaluation_sources) if paths.evaluation_sources else []
    return build_index(evaluation_texts(folders), params.decontaminate) if folders else None


def evaluation_texts(folders: Iterable[Path]) -> Iterator[EvaluationText]:
    """Yield the texts of evaluation sources, each message and answer for itself, in the form that clean gives them."""
    for folder in folders:
        for kind in ("documents", "conversations", "preferences"):
            for row in iter_rows(folder / f"{kind}.parquet"):
                messages = row.get("messages") or row.get("prompt") or []
                texts = [row.get("text"), *(one["content"] for one in messages), row.get("chosen"), row.get("rejected")]
                for text in filter(None, texts):
                    yield EvaluationText(row["id"], row["source"], normalise_text(text))


def drop_repeated(questions: Corpus, ledger: Ledger) -> None:
    """Drop the questions that another edition of a text asks again with other options.

    The four questions on the same options go together: only whole fours are without a clue.
    """
    fours: dict[frozenset[str], list[int]] = {}
    ids = questions.ids.to_pylist()
    for i, one in sorted(read_questions(questions), key=lambda pair: pair[1].id):
        fours.setdefault(frozenset(one.options), []).append(i)
    asked: set[str] = set()
    for four in fours.values():
        again = sorted(asked.intersection(ids[i] for i in four))
        if again:
            for i in four:
                questions.reject(i, "asked_before", to_json({"kept": again[0]}), ledger)
        else:
            asked.update(ids[i] for i in four)


def read_questions(questions: Corpus) -> Iterator[tuple[int, Question]]:
    """Yield (place in the order of arrival, question) of those that are kept."""
    places = questions.keep_N.nonzero()[0].tolist()
    rows = (row for table in questions.read() for row in table.to_pylist())
    yield from zip(places, (Question(**row) for row in rows), strict=True)


def drop_seen(questions: Corpus, corpora: dict[str, Corpus], splits: Splits, processes: int, ledger: Ledger) -> None:
    """Drop held-out questions whose answer stands in the training records, with the others on the same options."""
    held = [(i, one) for i, one in read_questions(questions) if splits(one.group) == VAL]
    answers = {i: key_words(one.options[one.answer]) for i, one in held}
    seen: set[str] = set()
    if answers:
        find = partial(find_seen, wanted=frozenset(answers.values()))
        for found in map_ordered(find, track(train_texts(corpora, splits), "held-out answers"), processes):
            seen |= found
    known = {frozenset(one.options) for i, one in held if answers[i] in seen}
    for i, one in held:
        if frozenset(one.options) in known:
            questions.reject(i, "seen_in_training", "an answer of its four stands in a training record", ledger)


def train_texts(corpora: dict[str, Corpus], splits: Splits) -> Iterator[list[str]]:
    """Yield, batch by batch, every text that a training stage may see."""
    for kind in ("documents", "conversations", "preferences"):
        for table in corpora[kind].read():
            train = table.filter(pa.array([splits(group) == TRAIN for group in table["group"].to_pylist()], pa.bool_()))
            if kind == "documents":
                yield train["text"].to_pylist()
            elif kind == "conversations":
                yield [one["content"] for messages in train["messages"].to_pylist() for one in messages]
            else:
                yield train["chosen"].to_pylist() + train["rejected"].to_pylist()


@dataclass
class Counts:
    """What is kept, by kind, split, source and language."""

    splits: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in RAW_KINDS})
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    size_bytes: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str, table: pa.Table, sides: list[str]) -> None:
        """Count the rows of a table."""
        self.splits[kind].update(sides)
        for source in table["source"].to_pylist():
            self.sources.setdefault(source, Counter())["kept"] += 1
        if kind == "documents":
            self.languages.update(json.loads(meta)["language"] for meta in table["meta"].to_pylist())
            for side, size in zip(sides, pc.binary_length(table["text"]).to_pylist(), strict=True):
                self.size_bytes[side] += size


def write_corpus(
    corpus: Corpus, splits: Splits, path: Path, counts: Counts, ledger: Ledger, surplus: Surplus | None
) -> None:
    """Write what is kept in its final order, with a column `split`, but for held-out text that is too much."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = corpus.schema.append(pa.field("split", pa.string()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for places, table in corpus.read_sorted():
            sides = [splits(group) for group in table["group"].to_pylist()]
            table = table.append_column(schema.field("split"), pa.array(sides, pa.string()))
            if surplus is not None:
                dropped = find_surplus(table, surplus)
                for i in places[dropped].tolist():
                    corpus.reject(i, "held_out_surplus", f"clean.max_val_bytes is {surplus.max_bytes}", ledger)
                table = table.filter(pa.array(~dropped))
            counts.count(corpus.kind, table, table["split"].to_pylist())
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def find_surplus(documents: pa.Table, surplus: Surplus) -> NDArray[np.bool_]:
    """Return for each document whether it is held out and too much."""
    rows = zip(*(documents[name].to_pylist() for name in ("split", "group")), strict=True)
    sizes = pc.binary_length(documents["text"]).to_pylist()
    dropped = [side == VAL and surplus.drops(group, size) for (side, group), size in zip(rows, sizes, strict=True)]
    return np.array(dropped, bool)


def measure(counts: Counts, ledger: Ledger) -> dict[str, object]:
    """Return counts of what came in, was kept and was dropped, by kind, source, split and reason."""
    rejected: dict[str, Counter[str]] = {kind: Counter() for kind in RAW_KINDS}
    for reject in ledger.rejects:
        rejected[reject.kind][reject.reason] += 1
        counts.sources.setdefault(reject.source, Counter())["rejected"] += 1
    return {
        "input": dict(ledger.inputs),
        "kept": {kind: sides.total() for kind, sides in counts.splits.items()},
        "rejected": {kind: dict(reasons) for kind, reasons in rejected.items()},
        "splits": {kind: dict(sides) for kind, sides in counts.splits.items()},
        "sources": {source: dict(numbers) for source, numbers in counts.sources.items()},
        "languages": dict(counts.languages.most_common()),
        "bytes": dict(counts.size_bytes),
        "placeholders": dict(ledger.placeholders),
    }


if __name__ == "__main__":
    main(Params, run)
