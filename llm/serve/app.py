"""The routes: OpenAI's models, chat completions and completions, and the chat page.

Content is data: prompts and answers are neither logged nor interpreted.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from llm.serve.answers import Piece, Prompt, Session, prepare_chat, prepare_completion
from llm.serve.engine import Engine
from llm.serve.errors import ApiError, from_status
from llm.serve.logprobs import make_choice
from llm.serve.release import Release
from llm.serve.requests import ChatRequest, CompletionRequest, parse

PAGE = Path(__file__).parent / "page" / "index.html"
# The page needs its own inline script and style and this server; nothing else can be loaded or called.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MAX_BODY_BYTES = 8_000_000
R = TypeVar("R", ChatRequest, CompletionRequest)


@dataclass(frozen=True)
class Served:
    """What the routes answer from; the service puts it into app.state once the model is loaded."""

    release: Release
    engine: Engine


def create_app() -> FastAPI:
    """Return the application; it answers once `app.state.served` is set."""
    app = FastAPI(title="Gristmill", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/", page, methods=["GET"])
    app.add_api_route("/v1/models", list_models, methods=["GET"])
    app.add_api_route("/v1/models/{model:path}", get_model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", create_chat, methods=["POST"])
    app.add_api_route("/v1/completions", create_completion, methods=["POST"])
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
    return app


async def page() -> Response:
    """GET /: the chat page."""
    return FileResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"})


async def list_models(request: Request) -> JSONResponse:
    """GET /v1/models."""
    return JSONResponse({"object": "list", "data": [_describe(request.app.state.served)]})


async def get_model(request: Request, model: str) -> JSONResponse:
    """GET /v1/models/{id}."""
    served: Served = request.app.state.served
    _require_model(model, served.release)
    return JSONResponse(_describe(served))


async def create_chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    served: Served = request.app.state.served
    body = await _read(request, ChatRequest)
    _require_model(body.model, served.release)
    prompt = prepare_chat(body, served.release)
    head = _head("chatcmpl", "chat.completion", served.release)
    session = Session(served.engine, served.release)
    if body.stream:
        chunks = _chat_chunks(session, prompt, {**head, "object": "chat.completion.chunk"})
        return EventStream(_with_usage(chunks, [prompt], body.include_usage), session)
    ((text, last),) = await _collect_all(request, session, [prompt])
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish}
    return JSONResponse({**head, "choices": [choice], "usage": _usage([prompt], last.num_tokens)})


async def create_completion(request: Request) -> Response:
    """POST /v1/completions."""
    served: Served = request.app.state.served
    body = await _read(request, CompletionRequest)
    _require_model(body.model, served.release)
    prompts = prepare_completion(body, served.release)
    if body.logprobs is not None and not served.engine.can_score:
        raise ApiError(
            f"logprobs: the engine {served.engine.name} does not score tokens; serve with GRISTMILL_ENGINE=torch",
            param="logprobs",
            code="unsupported_engine",
        )
    head = _head("cmpl", "text_completion", served.release)
    session = Session(served.engine, served.release)
    if body.stream:
        chunks = _completion_chunks(session, prompts, head)
        return EventStream(_with_usage(chunks, prompts, body.include_usage), session)
    answers = await _collect_all(request, session, prompts)
    choices = []
    for index, (prompt, (text, last)) in enumerate(zip(prompts, answers, strict=True)):
        choice = await make_choice(session, served.release, prompt, text, last.tokens, body)
        choices.append({"index": index, **choice, "finish_reason": last.finish})
    num_tokens = sum(last.num_tokens for _, last in answers)
    return JSONResponse({**head, "choices": choices, "usage": _usage(prompts, num_tokens)})


Chunks = AsyncIterator[tuple[dict[str, Any], int]]  # a chunk, and the tokens that its answer has so far


async def _chat_chunks(session: Session, prompt: Prompt, head: dict[str, Any]) -> Chunks:
    def chunk(delta: dict[str, str], finish: str | None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""}, None), 0
    async for piece in session.stream(prompt):
        if piece.text:
            yield chunk({"content": piece.text}, None), piece.num_tokens
        if piece.finish:
            yield chunk({}, piece.finish), piece.num_tokens


async def _completion_chunks(session: Session, prompts: list[Prompt], head: dict[str, Any]) -> Chunks:
    before = 0
    for index, prompt in enumerate(prompts):
        async for piece in session.stream(prompt):
            if piece.text or piece.finish:
                choice = {"index": index, "text": piece.text, "logprobs": None, "finish_reason": piece.finish}
                yield {**head, "choices": [choice]}, before + piece.num_tokens
            if piece.finish:
                before += piece.num_tokens


async def _with_usage(chunks: Chunks, prompts: list[Prompt], include_usage: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks; with usage asked for, a last one without choices holds it and the others say null."""
    chunk: dict[str, Any] = {}
    num_tokens = 0
    async for chunk, so_far in chunks:
        num_tokens = so_far
        yield {**chunk, "usage": None} if include_usage else chunk
    if include_usage:
        yield {**chunk, "choices": [], "usage": _usage(prompts, num_tokens)}


class EventStream(StreamingResponse):
    """Chunks as server-sent events; a client that hangs up cancels the session."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], session: Session):
        super().__init__(_write_events(chunks), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._session.close()


async def _write_events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except ApiError as error:  # the status is sent already; clients read an error event
        yield f"data: {json.dumps(error.body())}\n\n"
    yield "data: [DONE]\n\n"


async def _collect_all(request: Request, session: Session, prompts: list[Prompt]) -> list[tuple[str, Piece]]:
    """Return each answer's text, and its last piece with all tokens; a client that hangs up cancels the session."""

    async def collect(prompt: Prompt) -> tuple[str, Piece]:
        pieces = [piece async for piece in session.stream(prompt)]
        tokens = tuple(token for piece in pieces for token in piece.tokens)
        return "".join(piece.text for piece in pieces), replace(pieces[-1], tokens=tokens)

    async def wait_for_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, end = asyncio.gather(*map(collect, prompts)), asyncio.ensure_future(wait_for_end())
    try:
        waiting: set[asyncio.Future[Any]] = {work, end}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError("the client closed the connection", status=499)
        return await work
    finally:
        session.close()
        work.cancel()
        end.cancel()


async def _read(request: Request, kind: type[R]) -> R:
    """Return the request's body. JSON must be declared: a page of another site cannot do that without leave."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError("send the header Content-Type: application/json", code="invalid_content_type")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(f"the body holds more than {MAX_BODY_BYTES} bytes", status=413, code="body_too_large")
    return parse(kind, bytes(body))


def _require_model(model: str, release: Release) -> None:
    if model != release.model:
        message = f"the model {model!r} does not exist; this server has {release.model!r}"
        raise ApiError(message, status=404, param="model", code="model_not_found")


def _describe(served: Served) -> dict[str, Any]:
    release = served.release
    return {
        "id": release.model,
        "object": "model",
        "created": release.created,
        "owned_by": "gristmill",
        "metadata": {
            "release": release.hash,
            "fingerprint": release.fingerprint,
            "status": "released" if release.passed else "not released",
            "context": release.context,
            "file": "hf" if served.engine.name == "torch" else release.served.name,
            "engine": served.engine.name,
        },
    }


def _head(prefix: str, kind: str, release: Release) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": release.model,
        "system_fingerprint": release.fingerprint,
    }


def _usage(prompts: list[Prompt], num_tokens: int) -> dict[str, int]:
    num_prompt = sum(len(prompt.ids) for prompt in prompts)
    return {"prompt_tokens": num_prompt, "completion_tokens": num_tokens, "total_tokens": num_prompt + num_tokens}


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = error.headers
    return JSONResponse(
        from_status(error.status_code, request.method, request.url.path).body(), error.status_code, headers
    )


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(ApiError("internal error", status=500, code="internal_error").body(), status_code=500)
