"""Greedy next tokens of a GGUF file through llama.cpp (`xllamacpp`), the second engine that must read it.

The package's Python call answers in OpenAI's form, which drops tokens that are no whole UTF-8 character.
llama.cpp's own `/completion` returns token ids, so its server is asked over its local socket.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

import xllamacpp


class LlamaCppScorer:
    """One GGUF file in a llama.cpp server on a free local port; close it, or use it as a context manager."""

    def __init__(self, gguf: Path, *, context: int, threads: int):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx = context + 1  # room for the one token that is generated
        params.n_parallel = 1
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.warmup = False
        params.fit_params = False
        params.verbosity = -1
        self._server: xllamacpp.Server | None = xllamacpp.Server(params)
        address = urlparse(self._server.listening_address)
        self._connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=120)

    def __enter__(self) -> LlamaCppScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server."""
        self._connection.close()
        self._server = None

    def next_tokens(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return the greedy next token of each prompt. Prompts that extend the one before are cheap."""
        return [self._next_token(prompt) for prompt in prompts]

    def _next_token(self, prompt: Sequence[int]) -> int:
        body = {
            "prompt": list(prompt),
            "n_predict": 1,
            "temperature": 0,
            "cache_prompt": True,
            "return_tokens": True,
        }
        self._connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"llama.cpp answered {response.status} to {len(prompt)} tokens: {answer}")
        return int(answer["tokens"][0])
