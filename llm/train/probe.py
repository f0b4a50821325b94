"""How long a training step takes on this machine, from slices of the model that are measured.

A step's time is linear in the layers, and for the rest of the model in the vocabulary: blocks alone and one layer with
the whole vocabulary are timed through real steps, and multiplied. That takes seconds where the step takes minutes.
"""

import time

import torch

from llm.data.loader import Batch
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.train.footprint import Job
from llm.train.local import model_loss
from llm.train.optimiser import Optimiser, OptimiserConfig

SMALL_VOCABULARY = 260
SLICE_LAYERS = 2
SLICE_TOKENS = 4096


class Slice:
    """A short model of a shape, its optimiser and one batch."""

    def __init__(self, shape: ModelConfig, job: Job, rows: int):
        self.model = Transformer(shape)
        init_weights(self.model, 0)
        self.model.to(torch.bfloat16)
        self.optimiser = Optimiser(
            self.model, OptimiserConfig(optimiser="muon" if job.optimiser == "muon" else "adamw")
        )
        block = torch.randint(0, shape.vocab_size, (rows, job.context + 1), generator=torch.Generator().manual_seed(0))
        self.batch = Batch(block[:, :-1], block[:, 1:])

    def time_parts(self) -> tuple[float, float]:
        """Return the seconds of gradients, and of the optimiser's step."""
        started = time.perf_counter()
        model_loss(self.model, self.batch).backward()
        self.optimiser.collect()
        between = time.perf_counter()
        self.optimiser.step(1e-6)
        return between - started, time.perf_counter() - between


def estimate_step_here(job: Job, repeats: int = 3) -> float:
    """Return the seconds of one step of a job on this machine, in bf16 with torch's threads as they are.

    The best of `repeats` counts, alternating between the slices, so that other work on the machine slows both.
    """
    rows = max(1, min(job.batch_size, SLICE_TOKENS // job.context))
    blocks = job.shape.model_copy(update={"num_layers": SLICE_LAYERS, "vocab_size": SMALL_VOCABULARY})
    slices = [Slice(blocks, job, rows), Slice(job.shape.model_copy(update={"num_layers": 1}), job, rows)]
    runs = [[one.time_parts() for one in slices] for _ in range(repeats + 1)][1:]
    (gradients, step), (whole_gradients, whole_step) = (
        (min(run[i][0] for run in runs), min(run[i][1] for run in runs)) for i in range(2)
    )
    layers = (job.shape.num_layers - 1) / SLICE_LAYERS
    passes = job.batch_size / rows
    return passes * (whole_gradients + layers * gradients) + whole_step + layers * step
