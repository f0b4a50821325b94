"""Each reader on whole and on damaged files: what is kept, what is rejected and where."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest

from llm.config import ConfigError
from llm.data.rows.formats import SourceFormat
from llm.data.schema import BadRecord
from llm.data.sources.items import Fault, Item, Skip
from llm.data.sources.passages import cut_passages
from llm.data.sources.readers import choose_format, list_readers, require_format, text
from tests.llm.data.sample_files import (
    PAGE,
    PARAGRAPH,
    ROWS,
    SAMPLES,
    make_arrow,
    make_jsonl,
    make_parquet,
    make_pdf,
    make_warc,
)


def read(name: str, content: bytes, format_name: str = "", **given: object) -> list[Item | Fault | Skip]:
    fmt = SourceFormat.model_validate(given)
    reader = list_readers()[format_name or choose_format(content[:65536], name)]
    return list(reader.read(io.BufferedReader(io.BytesIO(content)), name, fmt))


def values(found: list[Item | Fault | Skip]) -> list[object]:
    return [one.value for one in found if isinstance(one, Item)]


def faults(found: list[Item | Fault | Skip]) -> list[tuple[int | str, str]]:
    return [(one.offset, one.reason) for one in found if isinstance(one, Fault)]


def test_every_format_has_a_sample() -> None:
    assert {choose_format(content, name) for name, content in SAMPLES.items()} == set(list_readers())


@pytest.mark.parametrize("name", SAMPLES)
def test_content_tells_the_format(name: str) -> None:
    """A name that says nothing changes nothing, but for an Arrow stream, which begins with no mark."""
    expected = choose_format(SAMPLES[name], name)
    assert expected in (name.rpartition(".")[2], "text", "csv")
    if name != "stream.arrow":
        assert choose_format(SAMPLES[name], "unnamed") == expected
    assert choose_format(SAMPLES[name], name + ".gz") == expected


@pytest.mark.parametrize(
    "content, name, expected",
    [
        (make_jsonl(), "rows.json", "jsonl"),  # JSON Lines under the name of JSON, as many data sets are published
        (b'{"text": "cut\n' + make_jsonl(), "rows", "jsonl"),
        (b'{"rows": [\n{"text": "a"},\n{"text": "b"}\n]}\n', "rows.json", "json"),
        (json.dumps(ROWS, indent=1).encode(), "rows", "json"),
        (json.dumps(ROWS[0]).encode(), "row.jsonl", "jsonl"),
        (b"[1] A footnote, and [2] another.\n", "note.txt", "text"),
        (b"  <!-- made by hand -->\n<HTML><body>x", "page.txt", "html"),
        (PAGE.encode("utf-16"), "page", "html"),
        (b"# A page about <html> in Markdown\n", "page.md", "text"),
        (b"one, two\nthree, four\nfive, six\nseven, eight\n", "poem.txt", "text"),
        (b"a;b;c\n1;2;3\n4;5;6\n7;8;9\n", "table", "csv"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "a.png", ""),
        (b"<?xml version='1.0'?><rows/>", "rows.xml", ""),
        (b"def grind(sack):\n    return sack\n", "mill.py", "text"),
        (b"\x7fELF\2\1\1\0\0\0", "a.txt", "text"),  # and its reader says that it is binary
    ],
)
def test_content_goes_before_names(content: bytes, name: str, expected: str) -> None:
    assert choose_format(content, name) == expected


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ConfigError, match="format: docx: no such reader; there are auto, arrow, csv"):
        require_format("docx")


def test_long_texts_come_in_parts_that_end_where_passages_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of gigabytes is never held, and is cut where it would be cut as a whole."""
    whole = "\r\n\r\n".join(f"{i}. {PARAGRAPH * (i % 5 + 1)}é" for i in range(400))
    expected = [passage for _, passage in cut_passages(whole)]
    monkeypatch.setattr(text, "PART_BYTES", 50_001)
    found = read("a.txt", whole.encode())
    assert len(found) > 3
    parts = [(int(one.offset), str(one.value)) for one in found if isinstance(one, Item)]
    assert [passage for _, part in parts for _, passage in cut_passages(part)][:-4] == expected[: len(expected) - 4]
    assert all(whole.replace("\r\n", "\n")[offset:].startswith(part) for offset, part in parts)
    assert "".join(part for _, part in parts) == whole.replace("\r\n", "\n")


def test_boilerplate_is_cut_and_named() -> None:
    mark = "OF THE PROJECT GUTENBERG EBOOK MILL ***"
    book = f"The Project Gutenberg eBook of Mill\n\n*** START {mark}\n\nThe text.\n\n*** END {mark}\n"
    (item,) = read("a.txt", book.encode())
    assert isinstance(item, Item)
    assert (str(item.value).strip(), item.removed) == ("The text.", "gutenberg")


def test_binary_under_the_name_of_text() -> None:
    with pytest.raises(BadRecord, match="binary"):
        read("a.txt", b"\x7fELF\2\1\1\0\0\0" * 50)


def test_the_main_text_of_a_page() -> None:
    (page,) = values(read("a.html", PAGE.encode()))
    assert PARAGRAPH.strip() in str(page)
    assert "Menu" not in str(page)
    latin = PAGE.replace("<head>", "<head><meta charset='iso-8859-2'>").replace("miller", "młynarz miejscowości ż")
    assert "młynarz miejscowości ż" in str(values(read("a.html", latin.encode("iso-8859-2"))))
    assert faults(read("a.html", b"<html><body><script>run()</script></body></html>")) == [(0, "no_main_text")]
    assert faults(read("a.html", PAGE.encode(), max_record_bytes=100)) == [(0, "too_long")]


def test_pdf_pages_and_scans() -> None:
    (document,) = read("a.pdf", make_pdf("First page.", "", "Third page."))
    assert isinstance(document, Item)
    assert document.value == "First page.\n\nThird page."
    assert faults(read("a.pdf", make_pdf("", ""))) == [(0, "no_text_layer")]
    assert faults(read("a.pdf", make_pdf("First page.", "Second."), max_record_bytes=12)) == [("page 2", "too_long")]


def test_one_bad_line_in_a_thousand() -> None:
    lines = make_jsonl([{"text": f"Row {i}."} for i in range(1000)]).splitlines(keepends=True)
    lines[499] = b'{"text": "cut\n'
    found = read("a.jsonl", b"".join(lines))
    assert len(values(found)) == 999
    assert faults(found) == [("line 500", "bad_json")]


def test_lines_that_are_no_rows() -> None:
    deep, large = b'{"a":' * 100_000, b'{"n": ' + b"9" * 5000 + b"}"
    found = read("a.jsonl", b'\n{"text": "a"}\n\n[1, 2]\n7\n"a text"\n' + deep + b"\n" + large + b"\n")
    assert values(found) == [{"text": "a"}, "a text"]
    assert [reason for _, reason in faults(found)] == ["wrong_type", "wrong_type", "bad_json", "bad_json"]


@pytest.mark.parametrize("size", [5_000, 3_000_000])  # less and more than is read at once
def test_a_line_that_is_too_long_is_passed_over(size: int) -> None:
    rows = make_jsonl().splitlines(keepends=True)
    content = b"".join(rows[:3]) + json.dumps({"text": "x" * size}).encode() + b"\n" + b"".join(rows[3:])
    found = read("a.jsonl", content, max_record_bytes=4_000)
    assert values(found) == ROWS
    assert faults(found) == [("line 4", "too_long")]
    assert len(values(read("a.jsonl", content, max_record_bytes=size + 20))) == 21


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_rows_in_other_encodings(name: str, encoding: str) -> None:
    french = "Le café a une façade très élégante, là-bas près de l'église"
    rows = [{"id": str(i), "text": f"{french} {i}"} for i in range(30)]
    if name == "a.csv":
        content = "id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        content = "\n".join(lines) if name == "a.jsonl" else f"[{', '.join(lines)}]"
    assert values(read(name, content.encode(encoding))) == rows


def test_an_object_around_rows_and_a_row_with_lists() -> None:
    assert values(read("a.json", json.dumps({"canary": "x", "examples": ROWS}).encode())) == ROWS
    talk = {"messages": [{"role": "user", "content": "hi"}]}
    assert values(read("a.json", json.dumps(talk).encode())) == [talk]
    assert values(read("a.json", json.dumps({"a": ROWS, "b": ROWS}).encode())) == [{"a": ROWS, "b": ROWS}]
    assert values(read("a.json", b'["one", "two"]')) == ["one", "two"]
    assert faults(read("a.json", b"[1, null]")) == [("row 1", "wrong_type"), ("row 2", "wrong_type")]
    assert faults(read("a.json", b'{"text": 1')) == [(0, "bad_json")]
    with pytest.raises(BadRecord, match="too_long"):
        read("a.json", json.dumps({"text": "x" * 200_000}).encode(), max_record_bytes=100)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_one_by_one(indent: int | None) -> None:
    """Elements of every size meet the ends of what is read at once."""
    rows = [{"text": 'é\\"[{,' * (i * i), "n": i, "on": True} for i in range(250)]
    content = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    assert len(content) > 10 * 65536
    assert values(read("a.json", content)) == rows
    found = read("a.json", content[:-1000])
    assert values(found) == rows[:-1]
    assert faults(found) == [("row 250", "bad_json")]
    hurt = content.replace(b'"n": 100', b'"n" 100')
    assert values(read("a.json", hurt)) == rows[:100]
    assert faults(read("a.json", hurt)) == [("row 101", "bad_json")]


def test_tables_with_wide_fields_and_wrong_columns() -> None:
    wide = "x" * 300_000
    content = f'text;note\n"one; two\nlines";a\nshort\n{wide};b\n\na;b;c\n"quoted ""words""";d\n'.encode()
    found = read("a.csv", content)
    assert [one["text"] for one in values(found)] == ["one; two\nlines", wide, 'quoted "words"']  # type: ignore[index]
    assert faults(found) == [("line 4", "wrong_columns"), ("line 7", "wrong_columns")]
    found = read("a.csv", content, max_record_bytes=1000)
    assert len(values(found)) == 2
    assert ("line 5", "too_long") in faults(found)


def test_a_table_of_one_column() -> None:
    assert values(read("a.csv", b'text\n"Hello, world"\nplain\n')) == [{"text": "Hello, world"}, {"text": "plain"}]
    assert values(read("a.tsv", b"text\nHello, world\n")) == [{"text": "Hello, world"}]


def test_a_damaged_row_group_costs_no_other() -> None:
    content = bytearray(make_parquet(row_group_size=5))
    start = content.find(b"Row 7 tells") - 60
    content[start : start + 60] = b"\xff" * 60
    found = read("a.parquet", bytes(content))
    assert values(found) == ROWS[:5] + ROWS[10:]
    assert [reason for _, reason in faults(found)] == ["corrupt_parquet"]
    with pytest.raises((pa.ArrowException, OSError)):
        read("a.parquet", bytes(content[:500]))


def test_an_arrow_stream_keeps_what_came_before_its_end() -> None:
    whole = make_arrow(file=False)
    fmt = SourceFormat()
    items = list_readers()["arrow"].read(io.BufferedReader(io.BytesIO(whole[: len(whole) // 2])), "a.arrow", fmt)
    assert [next(items) for _ in range(5)] == [Item(f"row {i + 1}", row) for i, row in enumerate(ROWS[:5])]
    with pytest.raises((pa.ArrowException, OSError)):
        list(items)


@pytest.mark.parametrize("file", [True, False])
def test_a_damaged_offset_rejects_its_row(file: bool) -> None:
    """Found by fuzzing: Arrow trusts the offsets of a file, and reading there ended the process."""
    content = bytearray(make_arrow(file=file))
    ends = np.cumsum([len(row["text"]) for row in ROWS[:5]], dtype=np.int32)
    start = content.find(ends.tobytes()) + 4  # of the second row's end, which is the third row's start
    content[start : start + 4] = np.int32(1 << 30).tobytes()
    found = read("a.arrow", bytes(content))
    assert values(found) == [*ROWS[:1], *ROWS[3:]]
    assert faults(found) == [("row 2", "bad_value"), ("row 3", "bad_value")]


def test_a_damaged_length_asks_for_no_memory() -> None:
    """Found by fuzzing: the run ended for want of memory."""
    content = bytearray(make_arrow(file=False))
    second = content.find(b"\xff\xff\xff\xff", 8)
    content[second + 4 : second + 8] = np.int32((1 << 31) - 8).tobytes()
    with pytest.raises(BadRecord, match="too_large"):
        read("a.arrow", bytes(content))


def test_values_that_python_cannot_hold_reject_their_row() -> None:
    days = pa.array([0, 10**15, 1], pa.int64()).cast(pa.timestamp("s"))
    batch = pa.record_batch({"text": ["a", "b", "c"], "day": days})
    target = io.BytesIO()
    with pa.ipc.new_file(target, batch.schema) as writer:
        writer.write_batch(batch)
    found = read("a.arrow", target.getvalue())
    assert [one["text"] for one in values(found)] == ["a", "c"]  # type: ignore[index]
    assert faults(found) == [("row 2", "bad_value")]


RESPONSES = [
    ("200 OK", "text/html; charset=utf-8", PAGE.encode()),
    ("404 Not Found", "text/html", PAGE.encode()),
    ("200 OK", "image/png", b"\x89PNG"),
    ("200 OK", "text/plain; charset=iso-8859-1", b"Plain caf\xe9, brul\xe9e"),
    ("200 OK", "text/html", b"<html></html>"),
]


def test_a_crawl() -> None:
    found = read("a.warc", make_warc(RESPONSES))
    pages = [one for one in found if isinstance(one, Item)]
    assert [one.url for one in pages] == ["http://example.org/0", "http://example.org/3"]
    assert PARAGRAPH.strip() in str(pages[0].value)
    assert pages[1].value == "Plain café, brulée"
    assert [one.what for one in found if isinstance(one, Skip)] == ["HTTP status 404", "WARC record that is no text"]
    assert [reason for _, reason in faults(found)] == ["no_main_text"]


@pytest.mark.parametrize("cut", [100, 800, 1500, 1900])  # in the text, at its start, in HTTP's and in WARC's headers
def test_a_truncated_record_keeps_the_earlier_ones(cut: int, capsys: pytest.CaptureFixture[str]) -> None:
    content = make_warc(RESPONSES[:1] * 3)
    starts = [i for i in range(len(content)) if content.startswith(b"WARC/1.0", i)]
    found = read("a.warc", content[: len(content) - cut])
    if len(content) - cut > starts[2]:
        assert len(values(found)) == 2
        assert faults(found) == [(f"byte {starts[2]}", "truncated_record")]
    else:
        assert len(values(found)) == 1
        assert faults(found) == [(f"byte {starts[1]}", "truncated_record")]
    assert capsys.readouterr().err == ""  # warcio would print a line of the page


def test_a_record_whose_length_is_wrong() -> None:
    content = make_warc(RESPONSES[:1] * 3)
    first = content.index(b"Content-Length: ") + len(b"Content-Length: ")
    digits = content[first : content.index(b"\r\n", first)]
    second = content.index(digits, content.index(b"WARC/1.0", 10))
    hurt = content[:second] + str(int(digits) - 2).encode() + content[second + len(digits) :]
    found = read("a.warc", hurt)
    assert len(values(found)) == 2
    assert [reason for _, reason in faults(found)] == ["truncated_record"]
