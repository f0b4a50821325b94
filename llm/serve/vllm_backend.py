"""vLLM on the Hugging Face folder, for a machine with a GPU. UNTESTED: written against its documented API, never run.

An optional extra (`pip install '.[vllm]'`), chosen by name only. Its answers are not the same alone and among others,
and it does not score given tokens.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.serve.backend import Event, Finish, Sampling, TokenScore
from llm.serve.grammar import to_grammar

log = logging.getLogger(__name__)

FINISH: dict[str, Finish] = {"stop": "stop", "length": "length"}
MAX_TOP = 20  # alternatives to a token


class VllmBackend:
    """vLLM's own engine, stepped by ours."""

    name = "vllm"
    score = None
    unsupported = frozenset[str]()
    max_running = None
    cache_use = 0.0  # vLLM tells its own metrics only

    def __init__(self, folder: Path, context: int, max_running: int):
        import vllm  # here, so that the module can be read where vLLM is not installed

        log.warning("the vllm engine is untested: nobody has run it on a GPU yet; watch its first answers")
        arguments = vllm.EngineArgs(
            model=os.fspath(folder),
            max_model_len=context,
            max_num_seqs=max_running,
            max_logprobs=MAX_TOP,
        )
        self._engine = vllm.LLMEngine.from_engine_args(arguments)
        self._num_top: dict[str, int | None] = {}

    def add(self, request: int, ids: list[int], sampling: Sampling) -> None:
        """Queue a request."""
        self._engine.add_request(str(request), {"prompt_token_ids": ids}, _params(sampling))
        self._num_top[str(request)] = sampling.num_top

    def step(self) -> list[tuple[int, Event]]:
        """Advance all requests and return what is new."""
        events = []
        for output in self._engine.step():
            (answer,) = output.outputs
            num_top = self._num_top[output.request_id]
            scores = [] if num_top is None else _read(answer.token_ids, answer.logprobs, num_top)
            finish = FINISH.get(answer.finish_reason, "error") if output.finished else None
            events.append((int(output.request_id), Event(list(answer.token_ids), finish, scores)))
            if output.finished:
                del self._num_top[output.request_id]
        return events

    def cancel(self, request: int) -> None:
        """Drop a request and its cache."""
        if self._num_top.pop(str(request), self) is not self:
            self._engine.abort_request([str(request)])


def _params(sampling: Sampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    grammar = None if sampling.json_schema is None else to_grammar(sampling.json_schema)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        stop_token_ids=sorted(sampling.stop_ids),
        ignore_eos=True,  # stop_ids hold it where it is to stop
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed % 2**63,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.num_top,
        structured_outputs=None if grammar is None else StructuredOutputsParams(grammar=grammar),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _read(tokens: Sequence[int], places: Sequence[Mapping[int, Any]], num_top: int) -> list[TokenScore]:
    """Return the scores of tokens; vLLM gives the most probable ones at each place, and the chosen one beside them."""
    scores = []
    for token, place in zip(tokens, places, strict=True):
        top = {other: one.logprob for other, one in place.items() if one.rank is not None and one.rank <= num_top}
        scores.append(TokenScore(place[token].logprob, top))
    return scores
