"""The routes: OpenAI's models, chat completions and completions, vLLM's tokenize and detokenize, and the chat page.

Content is data: prompts and answers are neither logged nor interpreted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llm.serve.answers import Session
from llm.serve.bodies import MAX_CHARS, parse
from llm.serve.completions import answer_chat, answer_text, make_head, stream_chat, stream_text
from llm.serve.engine import Engine
from llm.serve.errors import ApiError, from_status
from llm.serve.lineage_route import get_lineage, list_lineage
from llm.serve.logprobs import name_token
from llm.serve.metrics import Metrics
from llm.serve.openapi import describe_api
from llm.serve.page_route import show_page
from llm.serve.prompts import (
    Prompt,
    prepare_chat,
    prepare_completion,
    refuse_engine,
    repeat,
    require_known,
    require_readable,
    require_supported,
)
from llm.serve.release import Release
from llm.serve.replies import DetokenizeReply, ModelAbout, ModelList, ModelReply, TokenizeReply
from llm.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from llm.serve.streaming import EventStream, while_connected
from llm.serve.tools import render_turns

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Served:
    """What the routes answer from, for one model."""

    release: Release
    engine: Engine
    metrics: Metrics


def create_app(max_chars: int = MAX_CHARS) -> FastAPI:
    """Return the application, which reads texts of at most `max_chars`.

    It answers once `app.state.served` holds a Served for each model, the default one first. How large a body may be
    and how long a request may take is the gateway's to say.
    """
    app = FastAPI(title="Gristmill", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.max_chars = max_chars
    app.add_api_route("/", show_page, methods=["GET"])
    app.add_api_route("/openapi.json", api_document, methods=["GET"])
    app.add_api_route("/v1/models", list_models, methods=["GET"])
    app.add_api_route("/v1/models/{model:path}", get_model, methods=["GET"])
    app.add_api_route("/v1/lineage", list_lineage, methods=["GET"])
    app.add_api_route("/v1/lineage/{fingerprint}", get_lineage, methods=["GET"])
    app.add_api_route("/v1/chat/completions", create_chat, methods=["POST"])
    app.add_api_route("/v1/completions", create_completion, methods=["POST"])
    app.add_api_route("/tokenize", tokenize, methods=["POST"])
    app.add_api_route("/detokenize", detokenize, methods=["POST"])
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
    return app


async def api_document(request: Request) -> JSONResponse:
    """GET /openapi.json."""
    return JSONResponse(describe_api(tuple(request.app.state.served)))


async def list_models(request: Request) -> JSONResponse:
    """GET /v1/models."""
    models = [_describe(one) for one in request.app.state.served.values()]
    return JSONResponse(ModelList(data=models).model_dump())


async def get_model(request: Request, model: str) -> JSONResponse:
    """GET /v1/models/{id}."""
    return JSONResponse(_describe(_find(request, model)).model_dump())


async def create_chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = await _read(request, ChatRequest)
    served = _find(request, body.model)
    prompt = prepare_chat(body, served.release)
    fields = {
        "num_top": "top_logprobs",
        "json_schema": "response_format",
        "schema": "response_format.json_schema.schema",
    }
    if body.must_call:
        fields |= {"json_schema": "tool_choice", "schema": "tools"}
    require_supported([prompt], served.engine, fields)
    session = _start(request, served, [prompt], body.n or 1)
    if body.stream:
        head = make_head("chatcmpl", "chat.completion.chunk", served.release)
        return EventStream(head, stream_chat(session, served.release, body), session, body.include_usage)
    reply = await while_connected(request, session, answer_chat(session, served.release, body))
    return JSONResponse(reply.model_dump(exclude_unset=True))


async def create_completion(request: Request) -> Response:
    """POST /v1/completions."""
    body = await _read(request, CompletionRequest)
    served = _find(request, body.model)
    prompts = prepare_completion(body, served.release)
    require_supported(prompts, served.engine, {"num_top": "logprobs"})
    if body.echo and body.logprobs is not None and not served.engine.can_score:
        refuse_engine(served.engine, "logprobs")
    session = _start(request, served, prompts, body.n or 1)
    if body.stream:
        head = make_head("cmpl", "text_completion", served.release)
        return EventStream(head, stream_text(session, served.release, body), session, body.include_usage)
    work = answer_text(session, served.release, body, repeat(prompts, body.n or 1))
    reply = await while_connected(request, session, work)
    return JSONResponse(reply.model_dump(exclude_unset=True))


async def tokenize(request: Request) -> JSONResponse:
    """POST /tokenize."""
    body = await _read(request, TokenizeRequest)
    release = _find(request, body.model).release
    if body.messages is not None:
        turns = render_turns(body.messages, body.tools or [])
        require_readable(sum(len(turn["content"]) for turn in turns), release, "messages")
        ids = release.encode_chat(turns, body.add_generation_prompt)
    else:
        require_readable(len(body.prompt or ""), release, "prompt")
        ids = release.encode_text(body.prompt or "")[0 if body.add_special_tokens else 1 :]
    names = [name_token(release, token) for token in ids] if body.return_token_strs else None
    reply = TokenizeReply(count=len(ids), max_model_len=release.context, tokens=ids, token_strs=names)
    return JSONResponse(reply.model_dump())


async def detokenize(request: Request) -> JSONResponse:
    """POST /detokenize."""
    body = await _read(request, DetokenizeRequest)
    release = _find(request, body.model).release
    require_known(body.tokens, release, "tokens")
    return JSONResponse(DetokenizeReply(prompt=release.tokenizer.decode(body.tokens)).model_dump())


def _start(request: Request, served: Served, prompts: Sequence[Prompt], num_choices: int) -> Session:
    caller = getattr(request.state, "caller", None)
    session = Session(served.engine, served.release, served.metrics, caller)
    request.state.watches = session.watches  # the log reads them
    session.start(repeat(prompts, num_choices), num_choices)
    return session


async def _read(request: Request, kind: type[R]) -> R:
    """Return the request's body. JSON must be declared: a page of another site cannot do that without leave."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError("send the header Content-Type: application/json", code="invalid_content_type")
    return parse(kind, await request.body(), request.app.state.max_chars)


def _find(request: Request, model: str | None) -> Served:
    served: dict[str, Served] = request.app.state.served
    name = next(iter(served)) if model is None else model
    if name not in served:
        message = f"the model {name[:200]!r} does not exist; this server has {', '.join(map(repr, served))}"
        raise ApiError(message, status=404, param="model", code="model_not_found")
    return served[name]


def _describe(served: Served) -> ModelReply:
    release = served.release
    about = ModelAbout(
        release=release.hash,
        fingerprint=release.fingerprint,
        status="released" if release.passed else "not released",
        context=release.context,
        file="hf" if served.engine.name == "torch" else release.served.name,
        engine=served.engine.name,
    )
    return ModelReply(id=release.model, created=release.created, metadata=about)


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = error.headers
    return JSONResponse(
        from_status(error.status_code, request.method, request.url.path).body(), error.status_code, headers
    )


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(ApiError("internal error", status=500, code="internal_error").body(), status_code=500)
