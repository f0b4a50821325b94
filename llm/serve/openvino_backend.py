"""OpenVINO GenAI's continuous batching on a GGUF file: paged attention, many requests per step.

Token ids in, token ids out; its own tokenizer and stop strings stay unused, because it parses special tokens in text.
The prefix cache is on, except in exact mode: there an answer must not depend on what was asked before.
"""

import os
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from openvino_genai.py_openvino_genai import GenerationHandle

from llm.export.openvino import engine_properties, open_pipeline
from llm.serve.backend import Event, Finish, Sampling, TokenScore
from llm.serve.grammar import to_grammar

BLOCK_TOKENS = 32  # size of a page of OpenVINO's CPU cache
STEP_TOKENS = 1024  # of prompts in one step; 256, the default, takes a tenth more CPU time with 32 streams
PARALLEL = 16  # full contexts that fit the cache; more requests wait, none fails
FINISHES: dict[genai.GenerationFinishReason, Finish] = {
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}


class OpenVinoBackend:
    """A pipeline and the handles of its running requests. It gives no alternatives to a token, so it does not score."""

    score = None
    # The graph makes all logits positive, so that the two other penalties are subtracted; this one needs their signs.
    unsupported = frozenset({"repetition_penalty", "logit_bias", "num_top"})

    def __init__(self, gguf: Path, context: int, exact: bool = False, max_running: int = 64):
        """Load the file; `exact` gives the same text alone and among many.

        It then takes one request at a time: how two threads share a matrix product depends on its rows, so that what is
        in the same step can change the last bit of a sum, and with it a token.
        """
        self.name = "openvino-exact" if exact else "openvino"
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = not exact
        scheduler.max_num_seqs = max_running
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.cache_size = 0
        scheduler.num_kv_blocks = PARALLEL * (context // BLOCK_TOKENS + 1)
        properties = engine_properties(len(os.sched_getaffinity(0)), exact)
        self._pipeline = open_pipeline(gguf, scheduler, properties)
        self.max_running = 1 if exact else max_running
        self._handles: dict[int, GenerationHandle] = {}
        self._scored: set[int] = set()  # those that asked for the log-probabilities of their tokens

    @property
    def cache_use(self) -> float:
        """The share of the KV cache that the last step used."""
        return float(self._pipeline.get_metrics().cache_usage) / 100

    def add(self, request: int, ids: list[int], sampling: Sampling) -> None:
        """Start a request."""
        tensor = openvino.Tensor(np.array([ids], dtype=np.int64))
        self._handles[request] = self._pipeline.add_request(request, tensor, _config(sampling))
        if sampling.num_top is not None:
            self._scored.add(request)

    def step(self) -> list[tuple[int, Event]]:
        """Advance all requests and return what is new."""
        self._pipeline.step()
        events = []
        for request, handle in list(self._handles.items()):
            event = _read(handle, request in self._scored)
            if event.tokens or event.finish:
                events.append((request, event))
            if event.finish:
                del self._handles[request]
                self._scored.discard(request)
        return events

    def cancel(self, request: int) -> None:
        """Drop a request and its cache."""
        self._scored.discard(request)
        handle = self._handles.pop(request, None)
        if handle is not None:
            handle.cancel()


def _config(sampling: Sampling) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_tokens
    config.stop_token_ids = set(sampling.stop_ids)
    config.ignore_eos = not sampling.stop_ids  # else the file's own end token stops too
    config.frequency_penalty = sampling.frequency_penalty
    config.presence_penalty = sampling.presence_penalty
    config.logprobs = 0 if sampling.num_top is None else 1
    config.do_sample = sampling.temperature > 0
    if config.do_sample:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.top_k = sampling.top_k
        config.min_p = min(sampling.min_p, 0.9999)  # it refuses 1, which leaves the most probable token
        config.rng_seed = sampling.seed % 2**64
    if sampling.json_schema is not None:
        config.structured_output_config = genai.StructuredOutputConfig(grammar=to_grammar(sampling.json_schema))
    return config


def _read(handle: GenerationHandle, scored: bool) -> Event:
    """Return the tokens that a handle holds, and how it ended if it did."""
    tokens: list[int] = []
    scores: list[TokenScore] = []
    finish: Finish | None = None
    while handle.can_read():
        for output in handle.read().values():
            tokens += output.generated_ids
            if scored:
                scores += [TokenScore(logprob, {}) for logprob in output.generated_log_probs]
            finish = FINISHES.get(output.finish_reason)
    if not tokens and handle.get_status() == genai.GenerationStatus.IGNORED:
        finish = "error"  # no room in the cache, not even alone
    return Event(tokens, finish, scores)
