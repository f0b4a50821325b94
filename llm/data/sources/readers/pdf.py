"""PDF: the text layer of all pages; a scan without one is rejected."""

from collections.abc import Iterator

from llm.data.rows.formats import SourceFormat
from llm.data.sources.containers import as_seekable
from llm.data.sources.items import Fault, Item, Stream
from llm.data.text.boilerplate import strip_boilerplate


def sniff(head: bytes, name: str) -> int:
    return 3 if b"%PDF-" in head[:1024] else 2 * name.endswith(".pdf")


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    from pypdfium2 import PdfDocument, PdfiumError

    document = PdfDocument(as_seekable(stream))
    try:
        pages, size = [], 0
        for number in range(len(document)):
            try:
                page = document[number]
                pages.append(page.get_textpage().get_text_bounded().replace("\r\n", "\n").strip())
                page.close()
            except PdfiumError as error:
                yield Fault(f"page {number + 1}", "corrupt_pdf", str(error))
                continue
            size += len(pages[-1].encode("utf-8", "replace"))
            if size > fmt.max_record_bytes:
                yield Fault(f"page {number + 1}", "too_long", f"over {fmt.max_record_bytes} bytes of text")
                return
        text, removed = strip_boilerplate("\n\n".join(one for one in pages if one))
        if text.strip():
            yield Item(0, text, removed=removed)
        else:
            yield Fault(0, "no_text_layer", f"{len(pages)} page(s) hold no text: scanned pages want OCR first")
    finally:
        document.close()
