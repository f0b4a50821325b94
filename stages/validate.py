"""Validate: raw and clean records, and the rejects, against written expectations, before compute is spent.

A Great Expectations checkpoint per table; a failed expectation stops the DAG. The tracked report holds names,
figures and bounds only; Data Docs (reports/validation/, with dates) are written whether or not all pass.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pandas as pd
from pydantic import Field, NonNegativeInt

from llm.config import ConfigError, StageParams
from llm.data.tables import SCHEMAS, compare_schemas, read_tables
from stages.plumbing.stage import Paths, main, write_json

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult

Kind = Literal["documents", "conversations", "preferences", "questions"]
Share = Annotated[float, Field(ge=0, le=1)]
log = logging.getLogger(__name__)
DOCS = Path("reports/validation")
NUM_EXAMPLES = 3
# The forms that clean replaces, and no wider: an independent search for what its own pattern may have missed.
# Written without look-around, which Arrow's regular expressions lack.
EMAIL = (
    r"(?:^|[^\w.+%'-])[A-Za-z0-9](?:[\w.+%-]{0,30}[A-Za-z0-9])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?\.){1,4}[A-Za-z]{2,18}\b"
)


class Params(StageParams):
    min_document_chars: int = Field(20, ge=1, description="a clean document is at least so long")
    max_document_chars: int = Field(200_000, ge=100, description="a clean document is at most so long")
    max_reject_rate: dict[Kind, Share] = Field(
        default={"documents": 0.7, "conversations": 0.7, "preferences": 0.7, "questions": 0.9},
        description="largest share of raw records of a kind that clean may drop; 1.0 for a kind that is not named",
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


@dataclass(frozen=True)
class Check:
    """One expectation on one table; `kwargs` go to the Great Expectations class `type`."""

    table: str
    name: str
    type: str
    kwargs: dict[str, Any]
    bound: str | float | int
    remedy: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What one expectation observed: a count of rows that break it, or the figure that it bounds."""

    check: Check
    passed: bool
    observed: float | int | str
    examples: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return `<table>.<name>`."""
        return f"{self.check.table}.{self.check.name}"

    def explain(self) -> str:
        """Return the finding as one line of an error message."""
        ids = f", e.g. {', '.join(self.examples)}" if self.examples else ""
        return f"{self.name}: observed {self.observed}, allowed {self.check.bound}{ids}; {self.check.remedy}"


def run(params: Params, paths: Paths) -> dict[str, object]:
    raw, clean, rejects = (paths.deps[f"data/{name}"] for name in ("raw", "clean", "rejects"))
    sources = sorted(paths.sources) or sorted(one.name for one in raw.iterdir() if one.is_dir())
    shutil.rmtree(DOCS, ignore_errors=True)
    schemas = {"schemas": compare_schemas([raw / one for one in sources], clean, rejects)}
    findings = run_checks(schemas, check_schemas())
    if all(one.passed for one in findings):  # a table of another shape cannot be read any further
        tables = read_tables([raw / one for one in sources], clean, rejects)
        findings += run_checks(tables, [*check_records(params), *check_ledger(params, tables["rejects"])])
    failed = [one for one in findings if not one.passed]
    metrics = {
        "passed": len(findings) - len(failed),
        "failed": len(failed),
        "expectations": {
            one.name: {"passed": one.passed, "observed": one.observed, "bound": one.check.bound} for one in findings
        },
    }
    write_json(DOCS / "summary.json", {**metrics, "examples": {one.name: list(one.examples) for one in failed}})
    if failed:
        lines = "\n  ".join(one.explain() for one in failed)
        raise ValidationFailed(f"{len(failed)} of {len(findings)} expectations failed; see {DOCS}\n  {lines}")
    log.info("%d expectations passed | data docs in %s", len(findings), DOCS)
    return metrics


def check_schemas() -> list[Check]:
    """Return the one check that must pass before any table is read."""
    pair = {"column_A": "found", "column_B": "expected"}
    remedy = "run `dvc repro --force --single-item clean`"
    return [Check("schemas", "columns", "ExpectColumnPairValuesToBeEqual", pair, 0, remedy)]


def check_records(params: Params) -> list[Check]:
    """Return the checks on single records; their observed figure is the number of rows that break them."""

    def lengths(table: str, name: str, column: str, remedy: str, low: int = 1, high: int | None = None) -> Check:
        kwargs = {"column": column, "min_value": low, "max_value": high}
        return Check(table, name, "ExpectColumnValueLengthsToBeBetween", kwargs, 0, remedy)

    def expect(table: str, name: str, kind: str, remedy: str, **kwargs: Any) -> Check:
        return Check(table, name, f"ExpectColumnValues{kind}", kwargs, 0, remedy)

    report = "a fault of clean: run `dvc repro --force --single-item clean`"
    low, high = params.min_document_chars, params.max_document_chars
    bounds = "validate.min_document_chars, validate.max_document_chars or clean.filters"
    checks = [
        lengths("documents", "length", "text", f"adjust {bounds}", low, high),
        lengths("documents", "license", "license", "the source must name a license; `unknown` is one"),
    ]
    for kind in SCHEMAS:
        checks.append(lengths(kind, "ids_present", "id", report))
        checks.append(expect(kind, "ids_unique", "ToBeUnique", report, column="id"))
        checks.append(expect(kind, "split_names", "ToBeInSet", report, column="split", value_set=["train", "val"]))
    for table in ("documents", "texts"):
        checks.append(expect(table, "text_present", "ToMatchRegex", report, column="text", regex=r"\S"))
        mend = "mend llm/data/pii.py, or remove the address from the source"
        checks.append(expect(table, "no_email", "ToNotMatchRegex", mend, column="text", regex=EMAIL))
    pair = {"column_list": ["chosen", "rejected"]}
    kind = "ExpectSelectColumnValuesToBeUniqueWithinRecord"
    checks.append(Check("preferences", "answers_differ", kind, pair, 0, report))
    assistant = {"column": "last_role", "value_set": ["assistant"]}
    checks.append(expect("conversations", "assistant_last", "ToBeInSet", report, **assistant))
    checks.append(expect("questions", "four_options", "ToBeInSet", report, column="num_options", value_set=[4]))
    answer = {"column": "answer", "min_value": 0, "max_value": 3}
    checks.append(expect("questions", "answer_index", "ToBeBetween", report, **answer))
    leak = "a group is in both splits: " + report
    checks.append(expect("groups", "one_split", "ToBeBetween", leak, column="num_splits", max_value=1))
    checks.append(lengths("rejects", "reasons", "reason", report))
    checks.append(expect("rejects", "kinds", "ToBeInSet", report, column="kind", value_set=list(SCHEMAS)))
    return checks


def check_ledger(params: Params, rejects: pd.DataFrame) -> list[Check]:
    """Return the checks on totals; their observed figure is the total."""

    def total(column: str, low: float, high: float | None, remedy: str, examples: Sequence[str] = ()) -> Check:
        bound = low if low == high else f">= {low}" if high is None else f"<= {high}"
        kwargs = {"column": column, "min_value": low, "max_value": high}
        return Check("ledger", column, "ExpectColumnMaxToBeBetween", kwargs, bound, remedy, tuple(examples))

    checks = []
    for kind in SCHEMAS:
        dropped = rejects[rejects["kind"] == kind]
        examples = (dropped["id"] + " (" + dropped["reason"] + ")").head(NUM_EXAMPLES)
        lost = "input must equal kept plus rejected: run `dvc repro --force --single-item clean`"
        checks.append(total(f"{kind}_unaccounted", 0, 0, lost))
        rate, raise_rate = params.max_reject_rate.get(kind, 1.0), f"raise validate.max_reject_rate.{kind} or adjust"
        checks.append(total(f"{kind}_reject_rate", 0, rate, f"{raise_rate} clean.filters, clean.near", examples))
        for split, least in (("train", params.min_train), ("val", params.min_val)):
            mend = f"lower validate.min_{split}.{kind}, adjust clean.holdout, or add text to ingest.sources"
            checks.append(total(f"{kind}_{split}", least.get(kind, 0), None, mend))
    return checks


def run_checks(tables: dict[str, pd.DataFrame], checks: Sequence[Check]) -> list[Finding]:
    """Run one checkpoint per table, write Data Docs, and return a finding per check, in order."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it tells of each internal step
    import great_expectations as gx  # 5 s: not at the top, where whoever reads Params would pay for it

    context = gx.get_context(mode="file", project_root_dir=DOCS)
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_or_update_pandas("tables")
    findings: dict[str, Finding] = {}
    for table in dict.fromkeys(check.table for check in checks):
        suite = context.suites.add_or_update(gx.ExpectationSuite(table))
        chosen = {check.name: check for check in checks if check.table == table}
        for check in chosen.values():
            expectation = getattr(gx.expectations, check.type)
            suite.add_expectation(expectation(**check.kwargs, meta={"name": check.name}))
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        definition = gx.ValidationDefinition(name=table, data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=table,
            validation_definitions=[context.validation_definitions.add_or_update(definition)],
            actions=[gx.checkpoint.UpdateDataDocsAction(name="docs")],
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": ["id"],
                "partial_unexpected_count": NUM_EXAMPLES,
            },
        )
        result = context.checkpoints.add_or_update(checkpoint).run(batch_parameters={"dataframe": tables[table]})
        for suite_result in result.run_results.values():
            for one in suite_result.results:
                finding = find(chosen[one.expectation_config.meta["name"]], one)
                findings[finding.name] = finding
    return [findings[f"{check.table}.{check.name}"] for check in checks]


def find(check: Check, result: "ExpectationValidationResult") -> Finding:
    """Return what is kept of a result of Great Expectations, which also holds times, uuids and texts."""
    if any(info.get("raised_exception") for info in _exceptions(result.exception_info)):
        raise RuntimeError(f"{check.table}.{check.name} could not be evaluated: {result.exception_info}")
    details = result.result
    observed = details.get("unexpected_count", details.get("observed_value"))
    rows = [str(row["id"]) for row in details.get("partial_unexpected_index_list") or []]
    examples = check.examples or tuple(dict.fromkeys(rows))[:NUM_EXAMPLES]
    value = observed.item() if hasattr(observed, "item") else observed
    return Finding(check, bool(result.success), round(value, 6) if isinstance(value, float) else value, examples)


def _exceptions(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the exception records: one, or one per metric that failed."""
    return [info] if "raised_exception" in info else [one for one in info.values() if isinstance(one, dict)]


if __name__ == "__main__":
    main(Params, run)
