"""Ingest: one source of any kind -> documents, conversations, preferences and questions of one schema.

Run once per source of `ingest.sources`; nothing is filtered here, but a record that cannot be read is rejected with
its file, offset and reason. Same source, params and packages give identical bytes.
"""

from pydantic import Field

from llm.config import StageParams
from llm.data.builtin.records import read_chat, read_python_text
from llm.data.ingest import write_outcomes, write_records
from llm.data.rows.formats import SourceFormat
from llm.data.sources.hosted import is_hosted
from llm.data.sources.read import read_source
from stages.plumbing.stage import Paths, main


class Source(SourceFormat):
    """Where one source's text lies, and what its content does not say by itself."""

    path: str = Field(
        min_length=1, description="pydocs, chat, a file, folder, glob or fsspec URL, or a Hugging Face dataset"
    )
    watch: str = Field(min_length=1, description="the file or folder whose change means: read it again")


class Params(StageParams):
    sources: dict[str, Source] = Field(
        default_factory=dict, description="name -> where the text lies; the names are folders of data/raw"
    )
    max_reject_rate: float = Field(
        0.5, ge=0, le=1, description="ingest stops when a larger share of a source's records cannot be read"
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
    name, source = paths.item, Source.model_validate(paths.source)
    out = next(iter(paths.outs.values()))
    processes = min(params.base.threads, 4)
    if source.path == "pydocs":
        lock = paths.deps["requirements.lock"]
        return write_records(read_python_text(lock, name, params.sample, processes), out, name)
    if source.path == "chat":
        lock, folders = paths.deps["requirements.lock"], (paths.deps["data/smalltalk"], paths.deps["data/principles"])
        return write_records(read_chat(lock, *folders, name, params.sample, processes, params.max_chats), out, name)
    if is_hosted(source.path):
        source = source.model_copy(update={"max_bytes": min(source.max_bytes, params.max_hosted_bytes)})
    outcomes = read_source(source.path, name, source)
    return write_outcomes(outcomes, out, name, source.path, params.max_reject_rate)


if __name__ == "__main__":
    main(Params, run)
