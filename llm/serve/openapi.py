"""The OpenAPI document of the routes, made from the same pydantic models that read and write their bodies."""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from llm.serve.lineage_route import LineageList, LineageReply
from llm.serve.replies import (
    ChatChunk,
    ChatReply,
    DetokenizeReply,
    ErrorReply,
    ModelList,
    ModelReply,
    TextReply,
    TokenizeReply,
)
from llm.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

REF = "#/components/schemas/{model}"
Json = dict[str, Any]
Kind = type[BaseModel]
# Path, what it does, its body (none: it is a GET), its answer, and the events of which that may be a stream.
ROUTES: list[tuple[str, str, Kind | None, Kind, Kind | None]] = [
    ("/v1/models", "List the models that are served, the default one first", None, ModelList, None),
    ("/v1/models/{model}", "Describe a model", None, ModelReply, None),
    ("/v1/lineage", "Say what each served release was made from", None, LineageList, None),
    ("/v1/lineage/{fingerprint}", "Say it of the release with a system_fingerprint", None, LineageReply, None),
    ("/v1/chat/completions", "Answer a conversation", ChatRequest, ChatReply, ChatChunk),
    ("/v1/completions", "Continue a text, or score one", CompletionRequest, TextReply, TextReply),
    ("/tokenize", "Return the token ids of a text or conversation", TokenizeRequest, TokenizeReply, None),
    ("/detokenize", "Return the text of token ids", DetokenizeRequest, DetokenizeReply, None),
]
ERRORS = {
    400: "The request is wrong; the error names the field",
    401: "The API key is missing or wrong",
    403: "The API key may not do this",
    404: "The model, or the release, does not exist",
    408: "The body was not sent whole in time",
    413: "The body is too large",
    429: "Too many requests: a limit of the key, or the engine's queue",
    500: "The engine failed on this request",
    503: "The server is shutting down",
    504: "The answer took too long",
}
LISTS = ("/v1/models", "/v1/lineage")
OF_BODIES = (400, 408, 413)
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 0}}}


@cache
def describe_api(models: tuple[str, ...]) -> Json:
    """Return the document of a server of these models."""
    kinds: list[tuple[Kind, JsonSchemaMode]] = [(ErrorReply, "serialization")]
    kinds += [(reply, "serialization") for _, _, _, *replies in ROUTES for reply in replies if reply is not None]
    kinds += [(body, "validation") for _, _, body, _, _ in ROUTES if body is not None]
    refs, definitions = models_json_schema(kinds, ref_template=REF)
    name = {"type": "string", "enum": list(models)}
    paths = {}
    for path, summary, body, reply, event in ROUTES:
        failure = refs[ErrorReply, "serialization"]
        operation: Json = {
            "operationId": path.strip("/").translate(str.maketrans("/", "_", "{}")) + ("_get" if body is None else ""),
            "summary": summary,
            "responses": _responses(path, refs[reply, "serialization"], failure, body is not None),
        }
        if event is not None:
            told: Json = {"type": "string", "contentMediaType": "application/json"}
            told |= {"contentSchema": {"anyOf": [refs[event, "serialization"], failure]}}
            data = {"anyOf": [{"const": "[DONE]"}, told]}
            schema = {"type": "object", "properties": {"data": data}, "required": ["data"]}
            operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": schema}
        if "{model}" in path:
            operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": name}]
        if "{fingerprint}" in path:
            text = {"type": "string", "minLength": 1}
            operation["parameters"] = [{"name": "fingerprint", "in": "path", "required": True, "schema": text}]
        if body is not None:
            content = {"application/json": {"schema": refs[body, "validation"]}}
            definitions["$defs"][body.__name__]["properties"]["model"] = name
            operation["requestBody"] = {"required": True, "content": content}
        paths[path] = {"get" if body is None else "post": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Gristmill", "version": "1", "description": "An OpenAI-compatible server of its releases."},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _responses(path: str, success: Json, failure: Json, has_body: bool) -> Json:
    content = {"application/json": {"schema": success}}
    responses: Json = {"200": {"description": "The answer", "content": content}}
    for status, description in ERRORS.items():
        if (status in OF_BODIES and not has_body) or (status == 404 and path in LISTS):
            continue
        responses[str(status)] = {
            "description": description,
            "content": {"application/json": {"schema": failure}},
            **({"headers": RETRY_AFTER} if status in (429, 503) else {}),
        }
    return responses
