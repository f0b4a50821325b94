"""The planner's step time against real steps on this machine, at three sizes, in one run.

`estimate_step_here` times slices of a model and multiplies; a real step of the whole model is timed in turns with it,
so that a noisy machine slows both. Last line: JSON with planned and measured seconds (best of three) and the error.
"""

import argparse
import json
import time

import torch

from llm.data.loader import Batch
from llm.model.presets import PRESETS
from llm.model.transformer import Transformer, init_weights
from llm.train.footprint import Job
from llm.train.local import LocalEngine
from llm.train.optimiser import OptimiserConfig
from llm.train.probe import estimate_step_here

SIZES = {"nano": (16, 256), "mini": (16, 256), "small": (2, 512)}  # sequences, tokens of each


def measure(name: str, repeats: int = 3) -> dict[str, float]:
    """Return planned and measured seconds of a step."""
    (rows, length), shape = SIZES[name], PRESETS[name]
    model = Transformer(shape)
    init_weights(model, 0)
    engine = LocalEngine(model.to(torch.bfloat16), OptimiserConfig())
    block = torch.randint(0, shape.vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(block[:, :-1], block[:, 1:])
    engine.step(batch, 1e-3)
    planned, measured = [], []
    for _ in range(repeats):
        planned.append(estimate_step_here(Job(shape, length, rows, 1, "muon"), 2))
        for _ in range(2):
            started = time.perf_counter()
            engine.step(batch, 1e-3)
            measured.append(time.perf_counter() - started)
    return {
        "planned_s": round(min(planned), 4),
        "measured_s": round(min(measured), 4),
        "error": round(min(planned) / min(measured) - 1, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {}
    for name in SIZES:
        found[name] = measure(name)
        print(name, found[name], flush=True)
    print(json.dumps({"largest_error": max(abs(one["error"]) for one in found.values()), **found}))


if __name__ == "__main__":
    main()
