"""Rollouts on a Ray cluster: actors that each hold the policy and answer their share of the prompts.

The weights of a step are put into Ray's object store once per call; every actor of a machine reads them there, on a CPU
without a copy. An answer draws from its own seed, so that it does not depend on who gives it, nor on how many actors
there are: the tokens are those of `llm.infer.generate.generate` in this process (log-probabilities to rounding).
An actor that dies is started again and asked again; a call holds all that it needs.

Left out: the trainer waits for the last answer; a policy over a 4-bit base (its weights are more than tensors).
RAY_ADDRESS names a running cluster, without it Ray starts on this machine (see llm/train/ray_launcher.py).
"""

import copy
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llm.config import Base
from llm.infer.generate import Completion, generate
from llm.model.transformer import Transformer

MAX_RESTARTS = 3  # of an actor; then the fault is not the machine's


class Sampler:
    """Runs in an actor: a policy without weights, which come with each question."""

    def __init__(self, empty: Transformer, threads: int, device: str):
        torch.set_num_threads(threads)
        self.policy, self.device = empty, device

    def generate(
        self,
        weights: Mapping[str, np.ndarray],
        prompts: Sequence[list[int]],
        seeds: Sequence[tuple[int, int]],
        max_new_tokens: int,
        stop_ids: Collection[int],
    ) -> list[Completion]:
        """Return the answers of the policy that has these weights."""
        with warnings.catch_warnings():
            # They are the object store's own memory, which must not be written to: nothing here does.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            state = {name: torch.from_numpy(array).to(self.device) for name, array in weights.items()}
        self.policy.load_state_dict(state, assign=True)
        return generate(self.policy, prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, seed=seeds)


class RayGenerator:
    """Answers prompts as `generate` does, by several actors."""

    def __init__(self, actors: Sequence[Any]):
        self.actors = actors

    def __call__(
        self,
        model: Transformer,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int],
        seed: int,
    ) -> list[Completion]:
        """Return one completion per prompt, in the order of the prompts; prompt i draws from (seed, i)."""
        import ray

        weights = ray.put({name: p.detach().cpu().numpy() for name, p in model.named_parameters()})
        # Strided: the answers to one prompt, of like length, are spread over all actors.
        shares = [range(first, len(prompts), len(self.actors)) for first in range(len(self.actors))]
        asked = [
            actor.generate.remote(
                weights, [prompts[i] for i in share], [(seed, i) for i in share], max_new_tokens, tuple(stop_ids)
            )
            for actor, share in zip(self.actors, shares, strict=True)
            if share
        ]
        completions: dict[int, Completion] = {}
        for share, answers in zip(shares, ray.get(asked), strict=False):
            completions |= dict(zip(share, answers, strict=True))
        return [completions[i] for i in range(len(prompts))]


@contextmanager
def start_generator(policy: Transformer, workers: int, base: Base) -> Iterator[RayGenerator]:
    """Start the actors; they, and a Ray that was started for them, end with the context."""
    import ray

    gpu = base.torch_device.type == "cuda"
    given = "RAY_ADDRESS" in os.environ
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        num_cpus=None if given else max(workers + 1, os.cpu_count() or 1),
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path.cwd())}},
    )
    try:
        remote = ray.remote(num_cpus=1, num_gpus=int(gpu), max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)(
            Sampler
        )
        empty = ray.put(copy_without_weights(policy))
        threads = max(1, base.threads // workers)
        yield RayGenerator([remote.remote(empty, threads, base.torch_device.type) for _ in range(workers)])
    finally:
        ray.shutdown()


def copy_without_weights(model: Transformer) -> Transformer:
    """Return a copy whose parameters have shapes only; what was put in the place of its modules is kept."""
    memo = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)  # type: ignore[arg-type]
