"""A client that costs little, so that it takes no processor from the servers: one streamed completion per connection.

It reads HTTP/1.1 with chunked transfer and server-sent events, as both servers write them, and nothing else.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.plumbing.servers import Server

Body = dict[str, Any]


@dataclass
class Reply:
    """The head of an answer, and its events as they come; `done` once `[DONE]` has come."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader = field(repr=False)
    done: bool = False

    async def events(self) -> AsyncIterator[Body]:
        """Yield the decoded events. The end of the connection ends them too, and leaves `done` false."""
        held = b""
        async for piece in self._pieces():
            *whole, held = (held + piece).split(b"\n\n")
            for event in whole:
                if event == b"data: [DONE]":
                    self.done = True
                elif event.startswith(b"data: "):
                    yield json.loads(event[6:])

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            while size := int(await self.reader.readline() or b"0", 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
        except (ConnectionError, asyncio.IncompleteReadError):
            return


@asynccontextmanager
async def open_stream(server: Server, body: Body, receive_bytes: int | None = None) -> AsyncIterator[Reply]:
    """Send a completion request and yield its reply; leaving hangs up.

    `receive_bytes` bounds the socket's buffer, so that a slow reader is felt by the server.
    """
    connection = socket.socket()
    connection.setblocking(False)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
    limit = 2**16 if receive_bytes is None else receive_bytes
    reader, writer = await asyncio.open_connection(sock=connection, limit=limit)
    try:
        content = json.dumps({"model": "gristmill", "stream": True, **body}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {server.key}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
        pairs = [line.split(":", 1) for line in lines if line]
        headers = {name.lower(): value.strip() for name, value in pairs}
        yield Reply(int(status.split()[1]), headers, reader)
    finally:
        writer.close()


@dataclass(frozen=True)
class Timing:
    """What one stream took."""

    first_s: float  # from the request to its first text
    text: str
    num_tokens: int


async def time_stream(server: Server, body: Body) -> Timing:
    """Read one answer to its end. Exits when the server refuses or breaks off."""
    started = time.perf_counter()
    first_s, text, num_tokens = 0.0, "", 0
    async with open_stream(server, {**body, "stream_options": {"include_usage": True}}) as reply:
        if reply.status != 200:
            raise SystemExit(f"error: port {server.port} answered {reply.status}: {await reply.reader.read(2000)!r}")
        async for event in reply.events():
            for choice in event.get("choices", ()):
                if not text and choice["text"]:
                    first_s = time.perf_counter() - started
                text += choice["text"]
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
    if not reply.done:
        raise SystemExit(f"error: port {server.port} broke off a stream")
    return Timing(first_s, text, num_tokens)


async def time_streams(server: Server, bodies: list[Body]) -> tuple[float, list[Timing]]:
    """Send all at once and return the seconds until the last has ended, and each one's timing."""
    started = time.perf_counter()
    timings = await asyncio.gather(*(time_stream(server, body) for body in bodies))
    return time.perf_counter() - started, timings
