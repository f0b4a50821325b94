"""Greedy next tokens, scores and ids of a GGUF file through llama.cpp (`xllamacpp`), the second engine to read it.

The package's Python call answers in OpenAI's form, which drops tokens that are no whole UTF-8 character.
llama.cpp's own `/completion` returns token ids, so its server is asked over its local socket.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import xllamacpp

FORCE = 1e6  # added to a logit: no other token can win


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

    def score_next(self, prompts: Sequence[Sequence[int]], targets: Sequence[int]) -> list[tuple[int, float | None]]:
        """Return, for each prompt, the greedy next token and log p(target | prompt) [nats].

        A bias forces the target; llama.cpp reports probabilities as they were before any bias, the likeliest token
        among them. Of a token that is no whole UTF-8 character it reports none: None.
        """
        return [self._score(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids that the file's own tokenizer gives; special tokens in a text are text."""
        settings = {"add_special": False, "parse_special": False}
        return [list(self._ask("/tokenize", {"content": text, **settings})["tokens"]) for text in texts]

    def _score(self, prompt: Sequence[int], target: int) -> tuple[int, float | None]:
        answer = self._complete(prompt, n_probs=1, logit_bias=[[target, FORCE]])
        if answer["tokens"] != [target]:
            raise RuntimeError(f"llama.cpp gave {answer['tokens']} where {target} was forced")
        if "completion_probabilities" not in answer:
            return self._next_token(prompt), None
        (found,) = answer["completion_probabilities"]
        return int(found["top_logprobs"][0]["id"]), float(found["logprob"])

    def _next_token(self, prompt: Sequence[int]) -> int:
        return int(self._complete(prompt)["tokens"][0])

    def _complete(self, prompt: Sequence[int], **settings: Any) -> dict[str, Any]:
        body = {
            "prompt": list(prompt),
            "n_predict": 1,
            "temperature": 0,
            "cache_prompt": True,
            "return_tokens": True,
        }
        return self._ask("/completion", body | settings)

    def _send(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return self._connection.getresponse()

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self._send(path, body)
        except ConnectionError:  # the server closes a connection that was idle for seconds
            self._connection.close()
            response = self._send(path, body)
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"llama.cpp answered {response.status} to {path}: {answer}")
        return answer
