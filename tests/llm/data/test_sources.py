"""Sources as streams of outcomes: every record is kept or rejected exactly once, whatever the bytes are."""

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.config import ConfigError
from llm.data.ingest import write_outcomes
from llm.data.rows.formats import SourceFormat
from llm.data.schema import Document
from llm.data.sources.read import Kept, Outcome, PassedOver, Rejected, read_source
from tests.llm.data.sample_files import (
    COMPRESS,
    PAGE,
    ROWS,
    SAMPLES,
    make_jsonl,
    make_pdf,
    make_tar,
    make_warc,
    make_zip,
)

ROOT = Path(__file__).parents[3]


def read(path: Path | str, **fmt: object) -> list[Outcome]:
    return list(read_source(str(path), "mine", SourceFormat.model_validate(fmt)))


def texts(outcomes: list[Outcome]) -> list[str]:
    made = [record for one in outcomes if isinstance(one, Kept) for record in one.records]
    return [one.text for one in made if isinstance(one, Document)]


def rejects(outcomes: list[Outcome]) -> list[tuple[str, str | int, str]]:
    return [(one.file, one.offset, one.reason) for one in outcomes if isinstance(one, Rejected)]


def test_a_folder_of_every_format(tmp_path: Path) -> None:
    for name, content in SAMPLES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "all.tar.gz").write_bytes(COMPRESS["gz"](make_tar(dict(SAMPLES))))
    outcomes = read(tmp_path)
    assert not rejects(outcomes)
    assert {one.format for one in outcomes if isinstance(one, Kept)} == {
        "arrow", "csv", "html", "json", "jsonl", "parquet", "pdf", "text", "warc",
    }  # fmt: skip
    files = [one.file for one in outcomes if isinstance(one, Kept)]
    packed = sorted(file.removeprefix("all.tar.gz/") for file in files if file.startswith("all.tar.gz/"))
    assert packed == sorted(file for file in files if not file.startswith("all.tar.gz/"))
    assert {record.url for one in outcomes if isinstance(one, Kept) for record in one.records} == {
        "", "http://example.org/0", "http://example.org/1", "http://example.org/2",
    }  # fmt: skip


def test_a_record_says_where_it_is_from(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip({"b/rows.jsonl": make_jsonl()}))
    outcomes = read(tmp_path / "a.zip", license="MIT")
    third = outcomes[2]
    assert isinstance(third, Kept)
    (document,) = third.records
    assert isinstance(document, Document)
    assert json.loads(document.meta) == {"file": "a.zip/b/rows.jsonl", "offset": "line 3"}
    assert (document.license, document.source) == ("MIT", "mine")


def bad_inputs() -> dict[str, tuple[dict[str, bytes], list[tuple[str, str | int, str]], int]]:
    """Each fault of the issue: files, expected rejects, records kept."""
    jsonl, lines = make_jsonl(), make_jsonl().splitlines(keepends=True)
    cut = make_warc([("200 OK", "text/html", PAGE.encode())] * 3)
    third = [i for i in range(len(cut)) if cut.startswith(b"WARC/1.0", i)][2]
    thousand = make_jsonl([{"text": f"Row {i}."} for i in range(1000)]).splitlines(keepends=True)
    thousand[500] = b"{\n"
    return {
        "corrupt gz": ({"a.jsonl.gz": COMPRESS["gz"](jsonl)[:-6]}, [("a.jsonl.gz", "after line 20", "corrupt_gz")], 20),
        "truncated WARC record": ({"a.warc": cut[:-300]}, [("a.warc", f"byte {third}", "truncated_record")], 2),
        "bad JSON line": ({"a.jsonl": b"".join(thousand)}, [("a.jsonl", "line 501", "bad_json")], 999),
        "wrong type": ({"a.jsonl": jsonl + b'{"text": 7}\n'}, [("a.jsonl", "line 21", "wrong_type")], 20),
        "missing column": ({"a.jsonl": jsonl + b'{"n": "x"}\n'}, [("a.jsonl", "line 21", "missing_column")], 20),
        "long line": (
            {"a.jsonl": lines[0] + b'{"text": "' + b"x" * 3_000_000 + b'"}\n' + lines[1]},
            [("a.jsonl", "line 2", "too_long")], 2,
        ),
        "empty file": ({"a.txt": b"", "b.txt": b"text"}, [("a.txt", 0, "empty")], 1),
        "blank file": ({"a.txt": b" \n", "b.txt": b"text"}, [("a.txt", 0, "empty")], 1),
        "table without rows": ({"a.csv": b"text,n\n", "b.txt": b"text"}, [("a.csv", 0, "empty")], 1),
        "zip bomb": (
            {"a.zip": make_zip({"bomb.txt": b"0" * 50_000_000, "good.txt": b"good"})},
            [("a.zip/bomb.txt", 0, "zip_bomb")], 1,
        ),
        "escaping path": (
            {"a.tar": make_tar({"../../etc/cron.d/x": b"bad", "good.txt": b"good"})},
            [("a.tar/../../etc/cron.d/x", 0, "unsafe_name")], 1,
        ),
        "blank row": ({"a.jsonl": jsonl + b'{"text": " "}\n'}, [("a.jsonl", "line 21", "empty")], 20),
        "picture": (
            {"a.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "b.txt": b"text"}, [("a.png", 0, "unsupported_format")], 1,
        ),
        "scan": ({"a.pdf": make_pdf("")}, [("a.pdf", 0, "no_text_layer")], 0),
        "no pdf": ({"a.pdf": b"%PDF-1.4 no more", "b.txt": b"text"}, [("a.pdf", 0, "corrupt_pdf")], 1),
        "no parquet": ({"a.parquet": b"PAR1 no more", "b.txt": b"text"}, [("a.parquet", 0, "corrupt_parquet")], 1),
        "binary": ({"a.txt": b"\x7fELF\2\1\1\0\0\0" * 20, "b.txt": b"text"}, [("a.txt", 0, "binary")], 1),
    }  # fmt: skip


BAD = bad_inputs()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_rejected_with_its_place_and_the_rest_is_kept(tmp_path: Path, name: str) -> None:
    files, expected, kept = BAD[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    outcomes = read(tmp_path, max_record_bytes=2_000_000)
    assert rejects(outcomes) == expected
    assert sum(isinstance(one, Kept) for one in outcomes) == kept


def test_a_dangling_link_among_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "b.txt").write_text("text")
    outcomes = read(tmp_path)
    assert rejects(outcomes) == [("a.txt", 0, "dangling_link")]
    assert texts(outcomes) == ["text"]


def test_limits_end_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(make_jsonl() + b"{\n" * 100)
    assert len(texts(read(tmp_path, max_records=3))) == 3
    assert len(texts(read(tmp_path, max_bytes=100))) == 3  # of about 37 bytes each
    assert not rejects(read(tmp_path, max_records=20))


def test_licences_beside_the_data_are_no_data(tmp_path: Path) -> None:
    for name in ("LICENSE", "sub/COPYING.md", "licence.txt", "a.txt", "licensed.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    outcomes = read(tmp_path)
    assert texts(outcomes) == ["a.txt", "licensed.txt"]
    assert [one.what for one in outcomes if isinstance(one, PassedOver)] == ["licence"] * 3
    assert texts(read(tmp_path / "LICENSE", format="text")) == ["LICENSE"]


def test_a_format_can_be_given_and_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(make_jsonl())
    assert texts(read(tmp_path, format="text")) == [make_jsonl().decode()]
    with pytest.raises(ConfigError, match="no such reader"):
        read(tmp_path, format="word")


@pytest.fixture(scope="session")
def spot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of a property share."""
    return tmp_path_factory.mktemp("spot")


def check_accounts(spot: Path, name: str, content: bytes) -> tuple[int, int]:
    """Read one file and write what it gives; nothing may crash, and each record must be counted once."""
    for old in spot.glob("in/*"):
        old.unlink()
    (spot / "in").mkdir(exist_ok=True)
    (spot / "in" / name).write_bytes(content)
    outcomes = read(spot / "in", max_record_bytes=100_000)
    kept = sum(isinstance(one, Kept) for one in outcomes)
    rejected = len(rejects(outcomes))
    if kept:
        ledger = write_outcomes(outcomes, spot / "out", "mine", "x", 1.0)["ledger"]
        assert (ledger["input"], ledger["kept"], ledger["rejected"]) == (kept + rejected, kept, rejected)
        assert pq.read_metadata(spot / "out/rejects.parquet").num_rows == rejected
        assert pq.read_metadata(spot / "out/documents.parquet").num_rows >= len(texts(outcomes)) > 0
    return kept, rejected


PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
SUFFIXES = [
    ".txt", ".md", ".html", ".pdf", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".warc", ".zip", ".tar",
    ".gz", ".zst", ".xml", "",
]  # fmt: skip
MAGICS = [
    b"", b"%PDF-1.4\n", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff\x10\0\0\0", b"WARC/1.0\r\n", b"PK\x03\x04", b"[",
    b"{", b"<html>", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh91AY&SY", b"\xfd7zXZ\0", b"\xff\xfe", b"a,b\n",
]  # fmt: skip


@PROPERTY
@given(st.binary(max_size=3000), st.sampled_from(MAGICS), st.sampled_from(SUFFIXES))
def test_random_bytes_never_crash(spot: Path, content: bytes, magic: bytes, suffix: str) -> None:
    kept, rejected = check_accounts(spot, f"x{suffix}", magic + content)
    assert kept + rejected > 0  # nothing vanishes


@PROPERTY
@given(st.data(), st.sampled_from([*SAMPLES, "all.zip", "all.tar", "a.jsonl.gz"]), st.booleans())
def test_damaged_files_never_crash(spot: Path, data: st.DataObject, name: str, whole: bool) -> None:
    given_files = {**SAMPLES, "all.zip": make_zip(SAMPLES), "all.tar": make_tar(dict(SAMPLES))}
    content = bytearray(given_files.get(name) or COMPRESS["gz"](SAMPLES["a.jsonl"]))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = len(content) if whole else data.draw(st.integers(1, len(content)))
    kept, rejected = check_accounts(spot, name, bytes(content[:end]))
    assert kept + rejected > 0


@PROPERTY
@given(st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_any_text_is_one_record_in_each_format(spot: Path, lines: list[str]) -> None:
    check_strings(spot, lines)


def check_strings(spot: Path, lines: list[str]) -> None:
    """Each string is a record of jsonl, json and csv; all of them together are one of txt."""
    rows = [json.dumps({"text": line}) for line in lines]
    assert sum(check_accounts(spot, "x.jsonl", "\n".join(rows).encode())) == len(lines)
    assert sum(check_accounts(spot, "x.json", json.dumps(lines).encode())) == len(lines)
    whole = "\n".join(lines).encode("utf-8", "replace")
    assert sum(check_accounts(spot, "x.txt", whole)) == 1
    clean = [line.encode("utf-8", "replace").decode().replace("\r", " ").replace("\0", "") for line in lines]
    table = io.StringIO()
    writer = csv.writer(table, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["text", "number"])
    writer.writerows((line, number) for number, line in enumerate(clean))
    kept, rejected = check_accounts(spot, "x.csv", table.getvalue().encode())
    assert kept + rejected == len(lines)
    assert kept == sum(bool(line.strip()) for line in clean)


def test_hostile_strings(spot: Path, shared_data: Path) -> None:
    lines = json.loads((shared_data / "naughty-strings/blns.json").read_text())
    assert len(lines) == 515
    check_strings(spot, lines)


def test_the_same_bytes_give_the_same_outcomes(tmp_path: Path) -> None:
    generator = random.Random(3)
    for name, content in SAMPLES.items():
        hurt = bytearray(content)
        hurt[generator.randrange(len(hurt))] ^= 0xFF
        (tmp_path / name).write_bytes(bytes(hurt))
    assert read(tmp_path) == read(tmp_path)


MEASURE = """
import resource, sys
from llm.data.rows.formats import SourceFormat
from llm.data.sources.read import Kept, Rejected, read_source
list(read_source(sys.argv[1] + "/small.jsonl", "x", SourceFormat()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kinds = [type(one).__name__ for one in read_source(sys.argv[1] + "/large.jsonl", "x", SourceFormat())]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *kinds)
"""


@pytest.mark.slow
def test_a_line_of_500_mb_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "small.jsonl").write_bytes(make_jsonl(ROWS[:2]))
    with (tmp_path / "large.jsonl").open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(500):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "after"}\n')
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        (tmp_path / "large.jsonl").unlink()
    grown_kb, *kinds = done.stdout.split()
    assert kinds == ["Kept", "Rejected", "Kept"]
    assert int(grown_kb) * 1024 < 250_000_000  # max_record_bytes, 100 MB, may be held
