"""WARC: the pages and plain texts of a crawl. What is neither, and failed requests, are passed over and counted.

Offsets are those of the records as they are decompressed.
"""

from collections.abc import Iterator

from warcio import ArchiveIterator
from warcio.recordloader import ArcWarcRecord

from llm.data.rows.formats import SourceFormat
from llm.data.schema import BadRecord
from llm.data.sources.items import Fault, Item, Skip, Stream
from llm.data.sources.readers.html import extract_page
from llm.data.text.encoding import decode_text

KINDS = ("response", "resource", "conversion")


class _Records(ArchiveIterator):  # type: ignore[misc]
    INC_RECORD = ""  # warcio would print a line of the record


def sniff(head: bytes, name: str) -> int:
    return 3 if head.startswith(b"WARC/") else 2 * name.endswith((".warc", ".wet"))


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault | Skip]:
    records = _Records(stream)
    for record in records:
        at = f"byte {records.offset}"
        content, problem = b"", ""
        try:
            if record.rec_type in KINDS:
                content = record.content_stream().read(fmt.max_record_bytes + 1)
        except Exception as error:  # noqa: BLE001 - whatever its decompressors raise; the next record may be whole
            problem = f"{type(error).__name__}: {error}"
        complaints = records.err_count
        records.read_to_end(record)
        if record.length is None or getattr(record.raw_stream, "limit", 0) > 0:
            yield Fault(at, "truncated_record", f"the file ends within this record ({record.rec_type})")
        elif records.err_count > complaints:
            yield Fault(at, "truncated_record", f"it does not end after its {record.length} bytes ({record.rec_type})")
        elif problem:
            yield Fault(at, "corrupt_record", problem)
        elif len(content) > fmt.max_record_bytes:
            yield Fault(at, "too_long", f"over {fmt.max_record_bytes} bytes")
        else:
            yield _read_record(record, content, at)
    if records.next_line:
        yield Fault(f"byte {records.offset}", "truncated_record", "the file ends within a record's headers")


def _read_record(record: ArcWarcRecord, content: bytes, at: str) -> Item | Fault | Skip:
    if record.rec_type not in KINDS:
        return Skip(f"WARC {record.rec_type}")
    headers = record.http_headers or record.rec_headers
    if record.http_headers and not str(headers.get_statuscode()).startswith("2"):
        return Skip(f"HTTP status {headers.get_statuscode()}")
    kind, _, rest = (headers.get_header("Content-Type") or "").partition(";")
    declared = rest.partition("charset=")[2].split(";")[0].strip() or None
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    try:
        if kind.strip().lower() in ("text/html", "application/xhtml+xml"):
            return extract_page(content, declared, at, url)
        if kind.strip().lower() == "text/plain":
            return Item(at, decode_text(content, declared), url)
    except BadRecord as error:
        return Fault(at, error.reason, error.detail)
    return Skip("WARC record that is no text")
