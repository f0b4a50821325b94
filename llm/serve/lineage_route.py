"""GET /v1/lineage: what the served releases were made from, by the `system_fingerprint` of their answers."""

from typing import Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from llm.serve.errors import ApiError
from llm.serve.release import Release


class Source(BaseModel):
    """A source's documents, by split and by licence."""

    documents: dict[str, int]
    licences: dict[str, int]


class Corpus(BaseModel):
    """What training read, by source."""

    sources: dict[str, Source]
    conversations: dict[str, int]
    preferences: dict[str, int]
    questions: dict[str, int]


class Stage(BaseModel):
    """A stage's digests of what it read and wrote, by path, and its params."""

    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any]


class Start(BaseModel):
    """The model that training started from."""

    name: str
    digest: str
    release: str | None = None


class Made(BaseModel):
    """The release's lineage.json."""

    corpus: Corpus
    stages: dict[str, Stage]
    init_from: Start | None = None


class LineageReply(Made):
    """GET /v1/lineage/{fingerprint}."""

    object: Literal["lineage"] = "lineage"
    system_fingerprint: str
    release: str
    model: str
    status: Literal["released", "not released"]


class LineageList(BaseModel):
    """GET /v1/lineage."""

    object: Literal["list"] = "list"
    data: list[LineageReply]


async def list_lineage(request: Request) -> JSONResponse:
    """GET /v1/lineage: that of every served release."""
    served = [_describe(name, one.release) for name, one in request.app.state.served.items()]
    return JSONResponse(LineageList(data=served).model_dump())


async def get_lineage(request: Request, fingerprint: str) -> JSONResponse:
    """GET /v1/lineage/{system_fingerprint}, with or without its mark."""
    for name, one in request.app.state.served.items():
        if fingerprint in (one.release.fingerprint, one.release.hash):
            return JSONResponse(_describe(name, one.release).model_dump())
    raise ApiError(
        f"no release served here has the fingerprint {fingerprint[:200]!r}; "
        "in the project's repository `python -m llm.export.lineage FINGERPRINT` finds its commit",
        status=404,
        param="fingerprint",
        code="lineage_not_found",
    )


def _describe(name: str, release: Release) -> LineageReply:
    made = Made.model_validate_json((release.folder / "lineage.json").read_bytes())
    return LineageReply(
        **dict(made),
        system_fingerprint=release.fingerprint,
        release=release.hash,
        model=name,
        status="released" if release.passed else "not released",
    )
