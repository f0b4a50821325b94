"""Ingest: one source of any kind -> documents, conversations, preferences and questions of one schema.

Run once per source of `ingest.sources`; nothing is filtered here. Same source, params and packages give
identical bytes.
"""

from pathlib import Path

from pydantic import Field

from llm.config import BaseParams, StageParams, require
from llm.data.hosted import is_hosted
from llm.data.schema import Records
from llm.data.sources import read_chat, read_dataset, read_files, read_python_text
from stages.plumbing.stage import Paths, main


class Source(BaseParams):
    """Where one source's text lies."""

    path: str = Field(
        min_length=1,
        description="pydocs, chat, a file, folder or glob, or a Hugging Face dataset; #FIELD names the text's field",
    )
    watch: str = Field(min_length=1, description="the file or folder whose change means: read it again")


class Params(StageParams):
    sources: dict[str, Source] = Field(
        default_factory=dict, description="name -> where the text lies; the names are folders of data/raw"
    )
    sample: float = Field(
        0.3, gt=0, le=1, description="share of the modules of pydocs and chat that are read, by hash of the name"
    )
    max_chats: int = Field(
        12_000, ge=0, description="at most so many conversations, and preferences, on functions, by hash of the id"
    )
    max_hosted_bytes: int = Field(64_000_000, ge=1, description="bytes read from the start of a Hugging Face dataset")


def run(params: Params, paths: Paths) -> dict[str, object]:
    assert paths.item is not None, "ingest runs once per source"
    locator = paths.source or params.sources[paths.item].path
    out = next(iter(paths.outs.values()))
    records, skipped = read_source(params, paths, paths.item, locator)
    for rows in (records.documents, records.conversations, records.preferences, records.questions):
        rows.sort(key=lambda row: row.id)
    records.write(out)
    size_bytes = sum(len(one.text.encode()) for one in records.documents)
    return {"records": records.counts(), "document_bytes": size_bytes, "skipped_files": skipped}


def read_source(params: Params, paths: Paths, name: str, locator: str) -> tuple[Records, dict[str, int]]:
    """Return the records of a source by the kind of its locator, and the files that were passed over."""
    where, _, field = locator.partition("#") if not Path(locator).exists() else (locator, "", "")
    lock = Path("requirements.lock")
    processes = min(params.base.threads, 4)
    if where == "pydocs":
        return read_python_text(paths.deps[str(lock)], name, params.sample, processes), {}
    if where == "chat":
        folders = paths.deps["data/smalltalk"], paths.deps["data/principles"]
        lock = paths.deps[str(lock)]
        return read_chat(lock, *folders, name, params.sample, processes, params.max_chats), {}
    if is_hosted(where):
        return read_dataset(where, name, field, params.max_hosted_bytes), {}
    require("://" not in where, f"ingest.sources.{name}.path: {where}: a web address cannot be read; download it")
    return read_files(where, name, field)


if __name__ == "__main__":
    main(Params, run)
