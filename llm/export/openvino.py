"""Score tokens, pick greedy ones and sample answers of a GGUF file through OpenVINO GenAI, the engine that serves it.

Token ids go in, never text: the engine would parse special tokens that it finds in text. It accepts ids out
of range and prompts beyond the context without a word, so both are checked here first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import openvino as ov
import openvino_genai as genai

from llm.export.openvino_graph import build_graph

# Prompt tokens of one engine step. Larger steps gain nothing on a CPU; the logits of a step are held at once.
STEP_TOKENS = 2048


def engine_properties(threads: int, exact: bool = False) -> dict[str, str | int]:
    """Return the plugin's settings.

    fp32 compute costs nothing here and keeps greedy tokens equal to torch's. `exact` also keeps the KV cache
    and the activations in fp32: the answer then does not depend on what else is in the batch. Threads are not
    pinned: a pinned one waits for its core while another is free (1.4 times the time beside other work).
    """
    properties: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    if exact:
        properties |= {"KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    return properties


def open_pipeline(
    gguf: Path, scheduler: genai.SchedulerConfig, properties: Mapping[str, str | int]
) -> genai.ContinuousBatchingPipeline:
    """Load a GGUF file as the graph that is built here; GenAI's own graph of it takes longer for each step.

    GenAI opens folders only; the weights in it stay mapped after it is gone.
    Raises:  ConfigError: see `build_graph`.
    """
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(build_graph(gguf), f"{folder}/openvino_model.xml", compress_to_fp16=False)
        return genai.ContinuousBatchingPipeline(folder, genai.Tokenizer(str(gguf)), scheduler, "CPU", **properties)


class OpenVinoScorer:
    """One GGUF file, loaded for scoring."""

    def __init__(self, gguf: Path, *, vocab_size: int, context: int, threads: int, exact: bool = False):
        self.vocab_size = vocab_size
        self.context = context
        self._path = gguf
        self._properties = engine_properties(threads, exact)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return, for each sequence, log p(token | the tokens before it) [nats] of all tokens but the first."""
        self._check(sequences, self.context)
        # With the prefix cache on, cached positions are not computed and so have no log-probability.
        outputs = self._run(sequences, _one_token(echo=True), prefix_cache=False)
        # The engine reports 1.0 for the first token, which has no context, and adds the one generated token.
        return [list(out.generated_log_probs[1 : len(ids)]) for out, ids in zip(outputs, sequences, strict=True)]

    def next_tokens(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return the greedy next token of each prompt. Prompts that extend one another share their cache."""
        self._check(prompts, self.context)
        return [out.generated_ids[0] for out in self._run(prompts, _one_token(), prefix_cache=True)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids that the file's own tokenizer gives; it parses special tokens that it finds in a text."""
        tokenizer = genai.Tokenizer(str(self._path))
        return [tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist() for text in texts]

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop_ids: Sequence[int], seed: int
    ) -> list[tuple[list[int], list[float], Literal["stop", "length"]]]:
        """Return an answer to each prompt, sampled at temperature 1 without truncation; prompt i draws from seed + i.

        Returns: what `llm.infer.generate.Completion` is made of: tokens, the log-probabilities [nats] that they were
                 drawn with, and "stop" when the last token is one of `stop_ids`.
        """
        self._check(prompts, self.context - max_new_tokens)
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = max_new_tokens
        config.stop_token_ids = set(stop_ids)
        config.do_sample = True
        config.temperature, config.top_p, config.top_k = 1.0, 1.0, 0
        config.logprobs = 1
        answers: list[tuple[list[int], list[float], Literal["stop", "length"]]] = []
        for out in self._run(prompts, config, prefix_cache=False, seed=seed):
            tokens = list(out.generated_ids)
            answers.append((tokens, list(out.generated_log_probs), "stop" if tokens[-1] in stop_ids else "length"))
        return answers

    def _run(
        self, prompts: Sequence[Sequence[int]], config: genai.GenerationConfig, *, prefix_cache: bool, seed: int = 0
    ) -> list[genai.GenerationOutput]:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = prefix_cache
        scheduler.max_num_batched_tokens = max(STEP_TOKENS, self.context)
        scheduler.cache_size = 1
        pipeline = open_pipeline(self._path, scheduler, self._properties)
        handles = []
        for i, ids in enumerate(prompts):
            config.rng_seed = seed + i  # add_request copies the settings
            handles.append(pipeline.add_request(i, ov.Tensor(np.array([ids], dtype=np.int64)), config))
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return [handle.read_all()[0] for handle in handles]

    def _check(self, prompts: Sequence[Sequence[int]], limit: int) -> None:
        for ids in prompts:
            if not 0 < len(ids) <= limit:
                raise ValueError(f"a prompt of {len(ids)} tokens: allowed are 1 to {limit} (context {self.context})")
            if min(ids) < 0 or max(ids) >= self.vocab_size:
                raise ValueError(f"a token id {max(ids)}: allowed are 0 to {self.vocab_size - 1}")


def _one_token(*, echo: bool = False) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = 1
    config.do_sample = False
    config.ignore_eos = True
    config.echo = echo
    config.logprobs = 1 if echo else 0
    return config
