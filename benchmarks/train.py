"""Our training step against transformers' Qwen3: same weights, batches, dtype, threads and optimiser.

Steps are interleaved, so that a noisy machine slows both. Neither side is compiled. The peer gets our fp32-master
AdamW and bf16 weights, which is faster for it than its customary autocast; only model and loss differ.
Our step with Muon, which the recipes use, is timed apart: it has no peer here.
Last line: JSON with gristmill_tok_s, transformers_tok_s and their ratio (medians of five rounds), muon_tok_s.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llm.data.loader import Batch
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from llm.train.local import LocalEngine
from llm.train.optimiser import Optimiser, OptimiserConfig

# the shape of recipes/laptop.yaml
SHAPE = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_layers=4,
    num_heads=2,
    num_kv_heads=2,
    head_size=128,
    mlp_size=704,
    context=256,
)
# One rate for every parameter and no decay: the sides group their parameters differently.
ADAMW = OptimiserConfig(optimiser="adamw", lr=1e-3, embedding_lr=1e-3, weight_decay=0.0)


class Peer(nn.Module):
    """transformers' model under a name that our optimiser takes for hidden matrices."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        super().__init__()
        self.blocks = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    def loss(self, batch: Batch) -> Tensor:
        """Mean next-token loss, by transformers' own loss function."""
        logits = self.blocks(input_ids=batch.tokens, use_cache=False).logits
        targets = batch.targets.contiguous()
        loss: Tensor = self.blocks.loss_function(logits, labels=None, shift_labels=targets, vocab_size=SHAPE.vocab_size)
        return loss


def make_steps(dtype: torch.dtype) -> dict[str, Callable[[Batch], float]]:
    """Return one step function per side, starting from the same weights."""
    ours = Transformer(SHAPE)
    init_weights(ours, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(ours, Path(folder))
        theirs = Peer(Path(folder), dtype)
    engine = LocalEngine(ours.to(dtype), ADAMW)
    optimiser = Optimiser(theirs, ADAMW)

    def step_theirs(batch: Batch) -> float:
        loss = theirs.loss(batch)
        loss.backward()
        optimiser.step(1.0)
        return float(loss.detach())

    with_muon = Transformer(SHAPE)
    init_weights(with_muon, seed=0)
    muon = LocalEngine(with_muon.to(dtype), OptimiserConfig(lr=1e-3, embedding_lr=1e-3))
    return {
        "gristmill": lambda batch: float(engine.step(batch, 1.0)["loss"]),
        "transformers": step_theirs,
        "muon": lambda batch: float(muon.step(batch, 1.0)["loss"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    steps = make_steps(dtype)
    generator = torch.Generator().manual_seed(0)
    # a small vocabulary in use, so that twenty steps learn something
    blocks = torch.randint(0, 200, (4, arguments.batch_size, SHAPE.context + 1), generator=generator)
    batches = [Batch(block[:, :-1], block[:, 1:]) for block in blocks]
    losses = {side: [step(batches[i % 4]) for i in range(20)] for side, step in steps.items()}
    last = {side: values[-1] for side, values in losses.items()}
    print(f"loss after 20 steps: {last}, from {losses['gristmill'][0]:.3f}")
    difference = abs(last["gristmill"] / last["transformers"] - 1)
    rates: dict[str, list[float]] = {side: [] for side in steps}
    tokens = 3 * arguments.batch_size * SHAPE.context
    for _ in range(5):
        for side, step in steps.items():
            started = time.perf_counter()
            for i in range(3):
                step(batches[i])
            rates[side].append(tokens / (time.perf_counter() - started))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    result = {
        "gristmill_tok_s": round(medians["gristmill"], 1),
        "transformers_tok_s": round(medians["transformers"], 1),
        "muon_tok_s": round(medians["muon"], 1),
        "ratio": round(medians["gristmill"] / medians["transformers"], 3),
        "loss_difference": round(difference, 5),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
    }
    assert difference < 0.01, f"the two sides learn differently: {result}"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
