"""Replies over HTTP: an answer as server-sent events, and what happens to one whose client has gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llm.serve.answers import Session
from llm.serve.errors import ApiError
from llm.serve.replies import ChunkChoice, TextChoice

R = TypeVar("R")
Choices = AsyncIterator[ChunkChoice] | AsyncIterator[TextChoice]


class EventStream(StreamingResponse):
    """Choices as server-sent events; a client that hangs up cancels the session."""

    def __init__(self, head: dict[str, Any], choices: Choices, session: Session, include_usage: bool):
        """Args: head: the fields that all events share."""
        events = _write_events(head, choices, session, include_usage)
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._session.close()


async def _write_events(
    head: dict[str, Any], choices: Choices, session: Session, include_usage: bool
) -> AsyncIterator[str]:
    """Yield an event for each choice; with usage asked for, a last one without choices holds it, the others say null.

    The head is written once: a model of the whole event for every token costs a sixth of the token's way to the client.
    """
    begin = f'data: {json.dumps(head)[:-1]}, "choices":['
    end = '],"usage":null}\n\n' if include_usage else "]}\n\n"
    try:
        async for choice in choices:
            yield f"{begin}{choice.model_dump_json(exclude_unset=True)}{end}"
        if include_usage:
            yield f'{begin}],"usage":{session.usage().model_dump_json()}}}\n\n'
    except ApiError as error:  # the status is sent already; clients read an error event
        yield f"data: {json.dumps(error.body())}\n\n"
    yield "data: [DONE]\n\n"


async def while_connected(request: Request, session: Session, work: Coroutine[Any, Any, R]) -> R:
    """Return what the work returns; a client that hangs up ends it, and cancels the session."""

    async def wait_for_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, end = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_end())
    try:
        waiting: set[asyncio.Future[Any]] = {task, end}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client closed the connection", status=499)
        return await task
    finally:
        session.close()
        task.cancel()
        end.cancel()
