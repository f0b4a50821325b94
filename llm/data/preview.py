"""Show the first records of a source as they would enter, and what was rejected on the way. Writes nothing.

python -m llm.data.preview ../texts
python -m llm.data.preview s3://bucket/rows.jsonl.gz --columns text=body --columns url=link
python -m llm.data.preview org/dataset --split test --kind qa
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llm.config import ConfigError
from llm.data.builtin.records import read_chat, read_python_text
from llm.data.ingest import Tally
from llm.data.rows.formats import SourceFormat
from llm.data.schema import Conversation, Document, Message, Records
from llm.data.sources.read import Kept, Made, Outcome, read_source

MAX_CHARS = 700  # of a text, shown
MAX_REJECTS = 1_000  # after so many, what is wrong is known
BUILTIN_SHARE = 0.004  # of the modules of `pydocs` and `chat`
COLORS = {"system": "magenta", "user": "cyan", "assistant": "green"}


def preview(locator: str, fmt: SourceFormat, count: int, console: Console) -> None:
    """Print `count` records of a source, reading no more of it than that takes."""
    tally, shown = Tally(max_reject_rate=1.0), 0
    for outcome in _read(locator, fmt):
        tally.add(outcome)
        if isinstance(outcome, Kept):
            for record in outcome.records[: count - shown]:
                shown += 1
                console.print(_draw(record, f"{shown}. {outcome.file}, {outcome.offset}", outcome.format))
        if shown == count or tally.reasons.total() == MAX_REJECTS:
            break
    console.print(_draw_tally(tally))
    if not tally.kept:
        raise ConfigError(f"{locator}: no usable record so far")


def _read(locator: str, fmt: SourceFormat) -> Iterator[Outcome]:
    if locator not in ("pydocs", "chat"):
        yield from read_source(locator, "preview", fmt)
        return
    lock, folders = Path("requirements.lock"), (Path("data/smalltalk"), Path("data/principles"))
    if locator == "pydocs":
        records: Records = read_python_text(lock, locator, BUILTIN_SHARE, 1)
    else:
        records = read_chat(lock, *folders, locator, BUILTIN_SHARE, 1, 1000)
    made: list[Made] = [*records.documents, *records.conversations, *records.preferences]
    for record in made:
        yield Kept(record.group, 0, "built-in", [record])


def _draw(record: Made, where: str, format_name: str) -> Panel:
    if isinstance(record, Document):
        kind, body = f"document, {len(record.text):,} characters", Group(_clip(record.text))
    elif isinstance(record, Conversation):
        kind, body = f"conversation ({record.kind})", Group(*map(_draw_message, record.messages))
    else:
        kind = f"preference ({record.kind})"
        body = Group(
            *map(_draw_message, record.prompt),
            Text("chosen: ", "bold green").append_text(_clip(record.chosen)),
            Text("rejected: ", "bold red").append_text(_clip(record.rejected)),
        )
    return Panel(body, title=_clip(f"{where}: {kind}"), title_align="left", subtitle=f"{format_name}")


def _draw_message(message: Message) -> Text:
    return Text(f"{message['role']}: ", COLORS.get(message["role"], "bold")).append_text(_clip(message["content"]))


def _clip(text: str) -> Text:
    """Return the start of a text, with what a terminal could act on made visible."""
    clipped = text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} ... ({len(text) - MAX_CHARS:,} more)"
    return Text("".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in clipped))


def _draw_tally(tally: Tally) -> Group:
    table = Table("rejected", "records", "such as", title=None)
    for reason, number in tally.reasons.most_common():
        table.add_row(reason, f"{number:,}", Group(*map(_clip, tally.examples[reason])))
    total = tally.kept + tally.reasons.total()
    formats = ", ".join(f"{number:,} {name}" for name, number in tally.formats.most_common())
    lines = [
        Text(f"{total:,} records read, {tally.kept:,} kept ({formats or 'none'}), {total - tally.kept:,} rejected")
    ]
    lines += [_clip(f"passed over: {what} ({number:,})") for what, number in tally.passed_over.most_common()]
    return Group(*([table] if tally.reasons else []), *lines)


def add_format_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `parse_format` reads."""
    for key in ("format", "kind", "config", "split"):
        parser.add_argument(f"--{key}", help=SourceFormat.model_fields[key].description)
    parser.add_argument("--columns", action="append", default=[], metavar="OURS=THEIRS", help="can be given again")
    parser.add_argument("--max-record-bytes", type=int, help=SourceFormat.model_fields["max_record_bytes"].description)


def parse_format(arguments: argparse.Namespace) -> SourceFormat:
    """Return what the flags say of the source. Raises: ConfigError."""
    pairs = [one.partition("=") for one in arguments.columns]
    given = {key: getattr(arguments, key) for key in ("format", "kind", "config", "split", "max_record_bytes")}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        return SourceFormat.model_validate({**given, "columns": {ours: theirs for ours, _, theirs in pairs}})
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, one['loc'])) or 'source'}: {one['msg']} (got {one['input']!r})"
            for one in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file, folder, archive, glob, fsspec URL, dataset name, pydocs or chat")
    parser.add_argument("--count", type=int, default=10, help="records to show (10)")
    add_format_flags(parser)
    arguments = parser.parse_args()
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it gives up on is a reject, and named
    try:
        preview(arguments.source, parse_format(arguments), max(arguments.count, 1), Console())
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
