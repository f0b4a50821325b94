"""Validate: raw and clean records, and the rejects, against written expectations, before compute is spent.

A Great Expectations checkpoint per table; a failed expectation stops the DAG. Texts are turned into figures batch
by batch, and only figures are judged. The tracked report holds names, figures and bounds, and the profile of the
corpus; Data Docs (reports/validation/, with dates) are written whether or not all pass. Drift is judged against
the profile of the last accepted release (llm/data/checks/profile.py), and not at all where none was accepted.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, NonNegativeInt

from llm.config import ConfigError, StageParams
from llm.data.checks.balance import name_unaccounted
from llm.data.checks.expectations import NUM_EXAMPLES, Check, expect_rows, expect_total, run_checks
from llm.data.checks.profile import FEATURES, measure_drift, read_reference
from llm.data.checks.tables import Folders, Tables, compare_schemas, name_documents, read_tables
from llm.data.dedup.minhash import NearDuplicateParams
from llm.data.dedup.straddle import find_straddling_records
from llm.data.pii.residue import PATTERNS, ResidueType
from llm.data.schema import INPUT, RAW_KINDS, iter_rows
from stages.plumbing.stage import SCRATCH, Paths, main, write_json

Kind = Literal["documents", "conversations", "preferences", "questions"]
Feature = Literal["length", "language", "source", "script", "words"]
Share = Annotated[float, Field(ge=0, le=1)]
log = logging.getLogger(__name__)
DOCS = Path("reports/validation")
REFERENCE = "data/reference/profile.json"
AGAIN = "a fault of clean: run `dvc repro --force --single-item clean`"


class Params(StageParams):
    min_document_chars: int = Field(20, ge=1, description="a clean document is at least so long")
    max_document_chars: int = Field(200_000, ge=100, description="a clean document is at most so long")
    max_input_reject_rate: float = Field(
        0.5, ge=0, le=1, description="largest share of a source's input records that ingest may reject"
    )
    max_reject_rate: dict[Kind, Share] = Field(
        default={"documents": 0.7, "conversations": 0.7, "preferences": 0.7, "questions": 0.9},
        description="largest share of raw records of a kind that clean may drop; 1.0 for a kind that is not named",
    )
    max_residue: dict[ResidueType, Share] = Field(
        default_factory=dict,
        description="largest share of records that may still hold personal data of a type; 0.0 for one not named",
    )
    max_copies: float = Field(0.0, ge=0, le=1, description="largest share of documents that repeat another's text")
    max_straddling: float = Field(
        0.002, ge=0, le=1, description="largest share of training records that repeat a held-out text, or nearly"
    )
    min_language_share: dict[str, Share] = Field(
        default_factory=dict, description="language code -> least share of the characters of the documents"
    )
    max_drift: dict[Feature, Annotated[float, Field(ge=0)]] = Field(
        default=dict.fromkeys(FEATURES, 0.25),
        description="largest population stability index against the last accepted release; not judged where unnamed",
    )
    min_train: dict[Kind, NonNegativeInt] = Field(
        default={"documents": 10, "conversations": 10, "preferences": 10},
        description="least number of training records of a kind; 0 for a kind that is not named",
    )
    min_val: dict[Kind, NonNegativeInt] = Field(
        default={"documents": 1, "preferences": 1, "questions": 20},
        description="least number of held-out records of a kind; 0 for a kind that is not named",
    )


class ValidationFailed(ConfigError):
    """The data breaks an expectation: names it, what was observed, what is allowed, examples and the remedy."""


def run(params: Params, paths: Paths) -> dict[str, object]:
    folders = list_folders(paths)
    reference = read_reference(paths.deps[REFERENCE])
    shutil.rmtree(DOCS, ignore_errors=True)
    findings = run_checks({"schemas": compare_schemas(folders)}, check_schemas(), DOCS)
    profile: dict[str, Any] = {}
    if all(one.passed for one in findings):  # a table of another shape cannot be read any further
        tables = read_tables(folders)
        profile = tables.profile
        checks = [*check_records(params), *check_ingest(params, folders, tables)]
        checks += [*check_ledger(params, folders, tables), *check_languages(params, folders, tables)]
        checks += check_straddling(params, folders, tables)
        checks += check_drift(params, folders, tables, reference["profile"])
        findings += run_checks(tables.frames, checks, DOCS, tables.namers)
    failed = [one for one in findings if not one.passed]
    metrics = {
        "passed": len(findings) - len(failed),
        "failed": len(failed),
        "expectations": {
            one.name: {"passed": one.passed, "observed": one.observed, "bound": one.check.bound} for one in findings
        },
        "profile": profile,
        "reference": reference["release"] or "none accepted: drift is not judged",
    }
    write_json(DOCS / "summary.json", {**metrics, "examples": {one.name: list(one.examples) for one in failed}})
    if failed:
        lines = "\n  ".join(one.explain() for one in failed)
        raise ValidationFailed(f"{len(failed)} of {len(findings)} expectations failed; see {DOCS}\n  {lines}")
    log.info("%d expectations passed | data docs in %s", len(findings), DOCS)
    return metrics


def list_folders(paths: Paths) -> Folders:
    """Return the folders of the sources that params name, and of what clean wrote."""
    raw, clean, rejects = (paths.deps[f"data/{name}"] for name in ("raw", "clean", "rejects"))
    evaluation = [raw / name for name in paths.evaluation_sources]
    sources = sorted(paths.sources) or sorted(one.name for one in raw.iterdir() if one.is_dir())
    return Folders([raw / name for name in sources], evaluation, clean, rejects)


def check_schemas() -> list[Check]:
    """Return the one check that must pass before any table is read."""
    pair = {"column_A": "found", "column_B": "expected"}
    remedy = "run `dvc repro --force` on ingest or clean, whichever wrote the file"
    return [Check("schemas", "columns", "ExpectColumnPairValuesToBeEqual", pair, 0, remedy)]


def check_records(params: Params) -> list[Check]:
    """Return the checks on single records; their observed figure is the number of rows that break them."""

    def among(table: str, name: str, column: str, allowed: Sequence[object], remedy: str = AGAIN) -> Check:
        return expect_rows(table, name, "ToBeInSet", remedy, column=column, value_set=list(allowed))

    length = {"column": "num_chars", "min_value": params.min_document_chars, "max_value": params.max_document_chars}
    bounds = "adjust validate.min_document_chars, validate.max_document_chars or clean.filters"
    copies = among("documents", "no_copies", "is_copy", [0], f"adjust validate.max_copies, or {AGAIN}")
    checks = [
        expect_rows("documents", "length", "ToBeBetween", bounds, **length),
        among("documents", "text_present", "is_blank", [0]),
        among("documents", "license", "has_license", [1], "the source must name a license; `unknown` is one"),
        among("documents", "meta", "is_object", [1]),
        allow_some(copies, params.max_copies),
        among("documents", "no_leaks", "is_leak", [0], f"a held-out text is also trained on: {AGAIN}"),
        among("texts", "text_present", "has_blank", [0]),
    ]
    for kind in RAW_KINDS:
        checks.append(among(kind, "ids_present", "has_id", [1]))
        checks.append(among(kind, "ids_unique", "is_repeated", [0]))
        checks.append(among(kind, "split_names", "split", ["train", "val"]))
    for table in ("documents", "texts"):
        for name in PATTERNS:
            mend = f"mend llm/data/pii/find.py, remove it from the source, or allow it: validate.max_residue.{name}"
            checks.append(allow_some(among(table, f"no_{name}", name, [0], mend), params.max_residue.get(name, 0.0)))
    checks.append(among("preferences", "answers_differ", "is_same", [0]))
    checks.append(among("conversations", "assistant_last", "last_role", ["assistant"]))
    checks.append(among("questions", "four_options", "num_options", [4]))
    checks.append(among("questions", "answer_index", "answer", range(4)))
    checks.append(among("groups", "one_split", "num_splits", [1], f"a group is in both splits: {AGAIN}"))
    checks.append(expect_rows("rejects", "reasons", "ToNotBeInSet", AGAIN, column="reason", value_set=[""]))
    checks.append(among("rejects", "kinds", "kind", list(RAW_KINDS)))
    return checks


def allow_some(check: Check, share: float) -> Check:
    """Return a check on rows that holds although a share of them breaks it."""
    if share == 0:
        return check
    return replace(check, kwargs={**check.kwargs, "mostly": 1 - share}, bound=f"<= {share} of the rows")


def check_ingest(params: Params, folders: Folders, tables: Tables) -> list[Check]:
    """Return the checks on each source's ledger: input records are kept or rejected, once, and are in the files."""
    again = "a fault of ingest: run `dvc repro --force` on this source"
    checks = [
        expect_rows("ingest", column, "ToBeBetween", again, column=column, min_value=0, max_value=0)
        for column in ("unaccounted", "unlisted", "unwritten")
    ]
    empty = "a source that gives no record: mend its path in ingest.sources, or remove it"
    checks.append(expect_rows("ingest", "not_empty", "ToBeBetween", empty, column="kept", min_value=1))
    worst = tables.frames["ingest"].sort_values("reject_rate")["id"].iloc[-1]
    path = next(folder for folder in (*folders.raw, *folders.evaluation) if folder.name == worst) / "rejects.parquet"
    remedy = f"mend source {worst} ({path} says what is wrong where), or raise validate.max_input_reject_rate"
    rate = params.max_input_reject_rate
    return [*checks, expect_total("ingest", "reject_rate", 0, rate, remedy, name_rejects(path, INPUT))]


def check_ledger(params: Params, folders: Folders, tables: Tables) -> list[Check]:
    """Return the checks on totals; their observed figure is the total."""
    checks = []
    ledger, rejected = tables.frames["ledger"].iloc[0], folders.rejects / "rejects.parquet"
    for kind in RAW_KINDS:
        examples = name_rejects(rejected, kind)
        lost = "every record must be kept or rejected, once: run `dvc repro --force --single-item clean`"
        names: Sequence[str] = ()
        if ledger[f"{kind}_unaccounted"]:
            names = name_unaccounted(folders.raw, folders.clean, rejected, kind, NUM_EXAMPLES)
        checks.append(expect_total("ledger", f"{kind}_unaccounted", 0, 0, lost, names))
        rate = params.max_reject_rate.get(kind, 1.0)
        remedy = f"raise validate.max_reject_rate.{kind} or adjust clean.filters, clean.near"
        checks.append(expect_total("ledger", f"{kind}_reject_rate", 0, rate, remedy, examples))
        for split, least in (("train", params.min_train), ("val", params.min_val)):
            mend = f"lower validate.min_{split}.{kind}, adjust clean.holdout, or add text to ingest.sources"
            few = () if ledger[f"{kind}_{split}"] else examples  # none at all: what was there has been rejected
            checks.append(expect_total("ledger", f"{kind}_{split}", least.get(kind, 0), None, mend, few))
    return checks


def name_rejects(rejected: Path, kind: str) -> list[str]:
    """Return the first rejects of a kind with their reasons."""
    rows = (one for one in iter_rows(rejected, ["id", "kind", "reason"]) if one["kind"] == kind)
    return [f"{one['id']} ({one['reason']})" for one in islice(rows, NUM_EXAMPLES)]


def check_languages(params: Params, folders: Folders, tables: Tables) -> list[Check]:
    """Return a check per language that params name; adds the table `languages`."""
    shares = tables.profile["language"]
    others = [name for name in shares if name not in params.min_language_share]
    most = max(others, key=lambda name: shares[name], default="")
    checks, row = [], {"id": "all sources"}
    for code, least in params.min_language_share.items():
        row[code] = shares.get(code, 0.0)
        found = name_documents(folders.clean / "documents.parquet", "language", most, {}) if row[code] < least else []
        remedy = f"lower validate.min_language_share.{code}, or look at what is in `{most}` instead"
        examples = [f"{one} ({most})" for one in found]
        checks.append(expect_total("languages", code, least, None, remedy, examples))
    tables.frames["languages"] = pd.DataFrame([row])
    return checks


def check_straddling(params: Params, folders: Folders, tables: Tables) -> list[Check]:
    """Return the check on near-duplicates across the split, in documents and answers; adds the table `splits`."""
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        found = find_straddling_records(folders.clean, Path(scratch), NearDuplicateParams())
    ledger = tables.frames["ledger"].iloc[0]
    num_trained = sum(int(ledger[f"{kind}_train"]) for kind in RAW_KINDS)
    row = {"id": "all sources", "straddling": round(len({one.train_id for one in found}) / max(num_trained, 1), 6)}
    tables.frames["splits"] = pd.DataFrame([row])
    remedy = "give records of one text the same group, drop some by clean.exclude_ids, or raise validate.max_straddling"
    names = [f"{one.train_id} (as {one.val_id}, {one.similarity:.2f})" for one in found[:NUM_EXAMPLES]]
    return [expect_total("splits", "straddling", 0, params.max_straddling, remedy, names)]


def check_drift(params: Params, folders: Folders, tables: Tables, reference: dict[str, Any]) -> list[Check]:
    """Return a check per feature of the profile that has a bound and a reference; adds the table `drift`."""
    checks, row = [], {"id": "all sources"}
    for drift in measure_drift(reference, tables.profile):
        if drift.feature not in params.max_drift:
            continue
        bound = params.max_drift[drift.feature]
        row[drift.feature] = drift.index
        grown = f"{drift.feature} {drift.grown} went from {drift.expected:.4f} to {drift.actual:.4f}"
        remedy = f"{grown}; if that is meant, `python -m llm.data.checks.profile --clear`, or raise validate.max_drift"
        names: Sequence[str] = ()
        if drift.index > bound:
            names = name_documents(folders.clean / "documents.parquet", drift.feature, drift.grown, reference)
        checks.append(expect_total("drift", drift.feature, 0, bound, remedy, names))
    tables.frames["drift"] = pd.DataFrame([row])
    return checks


if __name__ == "__main__":
    main(Params, run)
