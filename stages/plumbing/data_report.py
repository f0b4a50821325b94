"""Render reports/data-report.html: what went in, what was dropped and why, and how what is left looks.

    python -m stages.plumbing.data_report              the project's data, as the last run left it
    python -m stages.plumbing.data_report ../texts     another source: ingested and cleaned with the project's params
                                                       in a temporary folder, which is removed again

The page needs no network, no script and no other file. It shows texts of the data, personal data of rejected and of
raw ones included: it is for the eyes of who may see the data, and is not tracked.
"""

import argparse
import logging
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm.config import ConfigError, require
from llm.data.overview import SAMPLED, Overview, explain, look
from llm.data.pii.find import TYPES
from llm.data.preview import add_format_flags, parse_format
from llm.data.rows.formats import SourceFormat
from llm.data.schema import RAW_KINDS
from stages import clean, ingest
from stages.plumbing import report_numbers as numbers
from stages.plumbing.report import read_json
from stages.plumbing.report_numbers import percent, show_controls, size
from stages.plumbing.stage import Paths, list_sources, parse_params, read_yaml

PAGE = Path("reports/data-report.html")
Json = Mapping[str, Any]


def report_project(root: Path) -> str:
    """Return the page on the project's own data."""
    tree, dag = read_yaml(root / "params.yaml"), read_yaml(root / "dvc.yaml")
    folders = [root / "data/raw" / name for name in sorted(list_sources(tree, dag))]
    missing = [folder.name for folder in folders if not (folder / "ledger.json").exists()]
    require(not missing, f"data/raw: {', '.join(missing)} not ingested yet; run `dvc repro ingest` or name a SOURCE")
    cleaned = (root / "data/clean/documents.parquet").exists() and (root / "data/rejects").exists()
    view = look(folders, root / "data/clean" if cleaned else None, root / "data/rejects" if cleaned else None)
    made = {
        folder.name: read_json(root / f"reports/ingest/{folder.name}.json").get("metrics", {}) for folder in folders
    }
    cleaning = read_json(root / "reports/clean.json").get("metrics", {}) if cleaned else {}
    return render(view, made, cleaning, "this project's data", "" if cleaned else "clean has not run yet")


def report_source(locator: str, fmt: SourceFormat, root: Path, scratch: Path) -> str:
    """Return the page on another source; what is made on the way lies in `scratch`."""
    tree = read_yaml(root / "params.yaml")
    name = re.sub(r"\W+", "-", Path(locator).name).strip("-").lower() or "source"
    deps = {one: root / one for one in ("requirements.lock", "data/smalltalk", "data/principles")}
    raw = scratch / "raw" / name
    entry = {**fmt.model_dump(exclude_defaults=True), "path": locator, "watch": locator}
    made = ingest.run(
        parse_params("ingest", ingest.Params, tree),
        Paths("ingest", deps, {f"data/raw/{name}": raw}, item=name, source=entry),
    )
    outs = {f"data/{one}": scratch / one for one in ("clean", "rejects")}
    paths = Paths("clean", {"data/raw": scratch / "raw"}, outs, sources=(name,))
    paths.scratch = scratch / "work"  # in place of a folder that outlives the run
    paths.scratch.mkdir()
    stopped = ""
    cleaning: Json = {}
    try:
        cleaning = clean.run(parse_params("clean", clean.Params, tree), paths)
    except ConfigError as error:
        stopped = f"clean stopped: {error}"
    done = None if stopped else tuple(outs.values())
    view = look([raw], *(done or (None, None)))
    return render(view, {name: made}, cleaning, locator, stopped)


def render(view: Overview, made: Mapping[str, Json], cleaning: Json, title: str, stopped: str) -> str:
    """Return the page."""
    page = {
        "title": title,
        "stopped": stopped,
        "figures": list_figures(view, cleaning),
        "sources": describe_sources(view, made),
        "unreadable": describe_unreadable(view),
        "kinds": describe_kinds(view),
        "dropped_caption": caption_dropped(view),
        "histograms": list_histograms(view),
        "languages": bars(view.languages.most_common(), limit=12),
        "languages_caption": caption_languages(view.languages),
        "clusters": view.clusters,
        "pii": bars([(name, cleaning["placeholders"].get(name, 0)) for name in TYPES]) if cleaning else [],
        "kept": view.kept_samples,
        "rejected": [{**one, "why": explain(one)} for one in view.rejected_samples],
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": numbers.number, "size": size, "percent": percent, "visible": show_controls}
    return environment.get_template("data_report.html.j2").render(page)


def list_figures(view: Overview, cleaning: Json) -> list[dict[str, str]]:
    """Return the few figures that sum the page up."""
    read = sum(one["input"] for one in view.sources)
    unreadable, records = view.unreadable.total(), sum(view.inputs[kind] for kind in SAMPLED)
    figures = [
        {"name": "records read", "value": f"{read:,}", "note": f"{unreadable:,} of them unreadable"},
        {"name": "documents in", "value": f"{view.inputs['documents']:,}", "note": size(total_bytes(view))},
    ]
    if cleaning:
        kept, hidden = sum(view.kept[kind] for kind in SAMPLED), sum(cleaning["placeholders"].values())
        note = f"{percent(kept / max(records, 1))} of {records:,}"
        figures.append({"name": "records kept", "value": f"{kept:,}", "note": note})
        note = f"in {sum(1 for count in cleaning['placeholders'].values() if count)} types"
        figures.append({"name": "personal data replaced", "value": f"{hidden:,}", "note": note})
    return figures


def total_bytes(view: Overview) -> int:
    """Return the bytes of all documents."""
    return sum(one["size_bytes"] for one in view.sources)


def describe_sources(view: Overview, made: Mapping[str, Json]) -> list[dict[str, Any]]:
    """Return a row per source, with the formats that were read and what was passed over."""
    rows = []
    for one in view.sources:
        metrics = made.get(one["name"], {})
        formats = ", ".join(metrics.get("formats", {})) or "built in"
        made_of = ", ".join(f"{count:,} {kind}" for kind, count in one["records"].items() if count)
        rows.append({**one, "formats": formats, "made_of": made_of, "passed_over": metrics.get("passed_over", {})})
    return rows


def describe_unreadable(view: Overview) -> list[dict[str, Any]]:
    """Return the reasons for which input records are no records, with examples."""
    return [{**one, "examples": view.examples[one["name"]]} for one in bars(view.unreadable.most_common())]


def describe_kinds(view: Overview) -> list[dict[str, Any]]:
    """Return per kind what went into clean, what was kept, and the reasons of what was dropped."""
    rows = []
    for kind in RAW_KINDS:
        count = view.inputs[kind]
        if count:
            reasons = view.dropped.get(kind, Counter()).most_common()
            shares = [{"name": name, "count": n, "share": 100 * n / count} for name, n in reasons]
            rows.append({"name": kind, "input": count, "kept": view.kept[kind], "reasons": shares})
    return rows


def caption_dropped(view: Overview) -> str:
    """Return what to conclude from the reasons."""
    reasons = view.dropped.get("documents", Counter())
    count = view.inputs["documents"]
    if not reasons or not count:
        return "No document was dropped."
    reason, most = reasons.most_common(1)[0]
    share = reasons.total() / count
    advice = (
        "More than half of the documents are gone: look at the samples below before you trust what is left."
        if share > 0.5
        else "The samples below show whether that is right."
    )
    return f"{percent(share)} of the documents were dropped, most of them ({most:,}) as \u201c{reason}\u201d. {advice}"


def caption_languages(languages: Counter[str]) -> str:
    """Return what to conclude from the mix of languages."""
    if not languages.total():
        return ""
    code, most = languages.most_common(1)[0]
    others = len(languages) - 1
    share = most / languages.total()
    text = f"{percent(share)} of the characters are in \u201c{code}\u201d"
    if not others:
        return f"{text}: one language throughout."
    return f"{text}; {others} other codes share the rest. `und` is text of which the language could not be told."


def list_histograms(view: Overview) -> list[dict[str, Any]]:
    """Return the histograms of lengths and of words, before and after clean, with what to conclude."""
    lengths = {side: Counter({int(name[1:]): n for name, n in counts.items()}) for side, counts in view.lengths.items()}
    edges = sorted({edge for counts in lengths.values() for edge in counts})
    edges = [2**bits for bits in range(edges[0].bit_length() - 1, edges[-1].bit_length())] if edges else []
    words = sorted({name for counts in view.words.values() for name in counts}, key=lambda name: int(name.rstrip("+")))
    return [
        {
            "title": "Characters of a document",
            "caption": caption_lengths(lengths["in"]),
            "bins": bins([(short(edge), edge) for edge in edges], lengths),
            "axis": "fewer than so many",
        },
        {
            "title": "Characters of a mean word",
            "caption": "Prose has 4 to 7 in most languages that use spaces. A second hill from 10 on is tables, "
            "encoded data, or a language without spaces; below 3 lie lists of numbers.",
            "bins": bins([(name, name) for name in words], view.words),
            "axis": "characters, rounded",
        },
    ]


def caption_lengths(lengths: Counter[int]) -> str:
    """Return what to conclude from the lengths."""
    if not lengths:
        return "There is no document."
    small = sum(count for edge, count in lengths.items() if edge <= 256) / lengths.total()
    if small > 0.5:
        return f"{percent(small, 0)} of the documents are shorter than 256 characters: little context to learn from."
    return f"{percent(1 - small, 0)} of the documents have 256 characters or more."


def short(edge: int) -> str:
    """Return a power of two as 32, 1k, 2M."""
    for power, unit in ((20, "M"), (10, "k")):
        if edge >= 1 << power:
            return f"{edge >> power}{unit}"
    return str(edge)


def bins(names: Sequence[tuple[str, Any]], counts: Mapping[str, Counter[Any]]) -> list[dict[str, Any]]:
    """Return the bins with counts before and after, and their heights in percent of the highest."""
    top = max((n for counter in counts.values() for n in counter.values()), default=1)
    rows = []
    for label, key in names:
        before, after = counts["in"][key], counts.get("kept", Counter())[key]
        rows.append({"label": label, "in": before, "kept": after, "low": 100 * before / top, "high": 100 * after / top})
    return rows


def bars(counts: Sequence[tuple[str, int]], limit: int | None = None) -> list[dict[str, Any]]:
    """Return the first counts with their share of the largest in percent, and as a part of all."""
    top = max((count for _, count in counts), default=1) or 1
    total = sum(count for _, count in counts) or 1
    rows = [{"name": n, "count": count, "share": 100 * count / top, "part": count / total} for n, count in counts]
    return rows[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="file, folder, archive, glob, fsspec URL or dataset name")
    add_format_flags(parser)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("trafilatura").setLevel(logging.WARNING)
    try:
        if arguments.source is None:
            page = report_project(Path())
        else:
            with tempfile.TemporaryDirectory(prefix="gristmill-") as scratch:
                page = report_source(arguments.source, parse_format(arguments), Path(), Path(scratch))
    except ConfigError as error:
        sys.exit(str(error))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, encoding="utf8")
    print(PAGE.resolve())


if __name__ == "__main__":
    main()
