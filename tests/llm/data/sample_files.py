"""Small files of every format, made in memory."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

ROWS = [{"text": f"Row {i} tells of the mill by the river."} for i in range(20)]
PARAGRAPH = "The miller walked to his wheel at noon, and nobody had seen the sack of flour for a week. " * 3
PAGE = (
    "<!DOCTYPE html><html><head><title>Mill</title></head><body><nav><a href='/'>Menu entry</a></nav>"
    f"<article><h1>The mill</h1><p>{PARAGRAPH}</p><p>{PARAGRAPH}</p></article><footer>Imprint</footer></body></html>"
)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def make_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return target.getvalue()


def make_tar(members: dict[str, bytes | None], mode: str = "w") -> bytes:
    """A member without content is a symbolic link to /etc/passwd."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return target.getvalue()


def make_jsonl(rows: list[dict[str, str]] | None = None) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows or ROWS).encode()


def make_table(rows: list[dict[str, str]] | None = None) -> pa.Table:
    return pa.Table.from_pylist(rows or ROWS)


def make_parquet(row_group_size: int = 5) -> bytes:
    target = io.BytesIO()
    pq.write_table(make_table(), target, row_group_size=row_group_size, compression="none", use_dictionary=False)
    return target.getvalue()


def make_arrow(*, file: bool) -> bytes:
    target = io.BytesIO()
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(target, make_table().schema) as writer:
        writer.write_table(make_table(), max_chunksize=5)
    return target.getvalue()


def make_pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page, or none where the text is empty."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else "0 0 10 10 re f"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    content, offsets = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{one}\nendobj\n".encode()
    start = len(content)
    content += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    content += "".join(f"{offset:010d} 00000 n \n" for offset in offsets).encode()
    return content + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


def make_warc(responses: list[tuple[str, str, bytes]], *, compressed: bool = False) -> bytes:
    """Responses of (status, content type, body)."""
    target = io.BytesIO()
    writer = WARCWriter(target, gzip=compressed)
    for number, (status, kind, body) in enumerate(responses):
        headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
        url = f"http://example.org/{number}"
        writer.write_record(
            writer.create_warc_record(
                url, "response", payload=io.BytesIO(body), http_headers=headers,
                warc_headers_dict={"WARC-Date": "2020-01-01T00:00:00Z", "WARC-Record-ID": f"<urn:uuid:{number}>"},
            )
        )  # fmt: skip
    return target.getvalue()


SAMPLES: dict[str, bytes] = {
    "a.txt": b"A plain text about the mill.\n",
    "a.md": b"# Mill\n\nThe wheel turns.\n",
    "a.rst": b"Mill\n====\n\nThe wheel turns.\n",
    "a.html": PAGE.encode(),
    "a.pdf": make_pdf("The mill stands by the river."),
    "a.jsonl": make_jsonl(),
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": b"id,text\n" + b"".join(f'{i},"Row {i}, of the mill"\n'.encode() for i in range(20)),
    "a.tsv": b"id\ttext\n" + b"".join(f"{i}\tRow {i} of the mill\n".encode() for i in range(20)),
    "a.parquet": make_parquet(),
    "a.arrow": make_arrow(file=True),
    "stream.arrow": make_arrow(file=False),
    "a.warc": make_warc([("200 OK", "text/html; charset=utf-8", PAGE.encode())] * 3),
}
