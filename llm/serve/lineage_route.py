"""GET /v1/lineage: what the served releases were made from, by the `system_fingerprint` of their answers."""

import json
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from llm.serve.errors import ApiError
from llm.serve.release import Release


async def list_lineage(request: Request) -> JSONResponse:
    """GET /v1/lineage: that of every served release."""
    return JSONResponse({"object": "list", "data": [_describe(release) for release in _served(request)]})


async def get_lineage(request: Request, fingerprint: str) -> JSONResponse:
    """GET /v1/lineage/{system_fingerprint}, with or without its mark."""
    for release in _served(request):
        if fingerprint in (release.fingerprint, release.hash):
            return JSONResponse(_describe(release))
    raise ApiError(
        f"no release served here has the fingerprint {fingerprint!r}; "
        "in the project's repository `python -m llm.export.lineage FINGERPRINT` finds its commit",
        status=404,
        param="fingerprint",
        code="lineage_not_found",
    )


def _served(request: Request) -> list[Release]:
    return [request.app.state.served.release]


def _describe(release: Release) -> dict[str, Any]:
    """Return digests and params of the stages, sources and licences of the corpus: the release's lineage.json."""
    head = {
        "object": "lineage",
        "system_fingerprint": release.fingerprint,
        "release": release.hash,
        "model": release.model,
        "status": "released" if release.passed else "not released",
    }
    content: dict[str, Any] = json.loads((release.folder / "lineage.json").read_text(encoding="utf8"))
    return head | content
