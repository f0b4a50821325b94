"""Expectations on small tables: one Great Expectations checkpoint per table, with Data Docs, and what each found.

Nothing here knows what the tables hold. Great Expectations keeps whole columns, copies them, and fingerprints each
table, for which strings become Python objects; so a large table holds no string, but numbers its rows, and only the
rows of examples are given their names.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult

NUM_EXAMPLES = 3
Namer = Callable[[Sequence[int]], list[str]]


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


def expect_rows(table: str, name: str, kind: str, remedy: str, **kwargs: Any) -> Check:
    """Return a check that every row must pass; what it observes is the number of rows that do not."""
    return Check(table, name, f"ExpectColumnValues{kind}", kwargs, 0, remedy)


def expect_total(
    table: str, column: str, low: float | None, high: float | None, remedy: str, examples: Sequence[str] = ()
) -> Check:
    """Return a check on the largest value of a column, which is what it observes."""
    bound: str | float = f">= {low}" if high is None else f"<= {high}"
    if low is not None and low == high:
        bound = low
    kwargs = {"column": column, "min_value": low, "max_value": high}
    return Check(table, column, "ExpectColumnMaxToBeBetween", kwargs, bound, remedy, tuple(examples))


def run_checks(
    tables: Mapping[str, pd.DataFrame], checks: Sequence[Check], docs: Path, namers: Mapping[str, Namer] | None = None
) -> list[Finding]:
    """Run one checkpoint per table, write Data Docs, and return a finding per check, in order.

    Args:    tables: name -> table; its rows are known by the column `id`, or by the column `row` where there is one.
             namers: table -> the function that gives rows of such a table their names.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it tells of each internal step
    import great_expectations  # 5 s: not at the top, where whoever reads Check would pay for it

    gx: Any = great_expectations  # its annotations leave out some of what it documents
    context = gx.get_context(mode="file", project_root_dir=docs)
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_or_update_pandas("tables")
    findings: dict[str, Finding] = {}
    for table in dict.fromkeys(check.table for check in checks):
        suite = context.suites.add_or_update(gx.ExpectationSuite(table))
        chosen = {check.name: check for check in checks if check.table == table}
        known_by = "row" if "row" in tables[table] else "id"
        for check in chosen.values():
            expectation = getattr(gx.expectations, check.type)
            suite.add_expectation(expectation(**check.kwargs, meta={"name": check.name}))
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        definition = gx.ValidationDefinition(name=table, data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=table,
            validation_definitions=[context.validation_definitions.add_or_update(definition)],
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": [known_by],
                "partial_unexpected_count": 7 * NUM_EXAMPLES,  # an id that is there several times is one example
            },
        )
        result = context.checkpoints.add_or_update(checkpoint).run(batch_parameters={"dataframe": tables[table]})
        for suite_result in result.run_results.values():
            for one in suite_result.results:
                finding = find(chosen[one.expectation_config.meta["name"]], one, (namers or {}).get(table))
                findings[finding.name] = finding
    context.build_data_docs()  # once: as an action of each checkpoint it took three quarters of the stage's time
    return [findings[f"{check.table}.{check.name}"] for check in checks]


def find(check: Check, result: "ExpectationValidationResult", namer: Namer | None) -> Finding:
    """Return what is kept of a result of Great Expectations, which also holds times and uuids."""
    if any(info.get("raised_exception") for info in _exceptions(result.exception_info)):
        raise RuntimeError(f"{check.table}.{check.name} could not be evaluated: {result.exception_info}")
    details = result.result
    observed: Any = details.get("unexpected_count", details.get("observed_value"))
    rows = [row.get("row", row.get("id")) for row in details.get("partial_unexpected_index_list") or []]
    names = namer(rows) if namer and not result.success else map(str, rows)
    examples = check.examples or tuple(dict.fromkeys(names))[:NUM_EXAMPLES]
    value = observed.item() if hasattr(observed, "item") else observed
    return Finding(check, bool(result.success), round(value, 6) if isinstance(value, float) else value, examples)


def _exceptions(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the exception records: one, or one per metric that failed."""
    return [info] if "raised_exception" in info else [one for one in info.values() if isinstance(one, dict)]
