"""How fast a useful model comes out of one megabyte: Shakespeare's plays, from a bare process to bits per byte.

The text (`TEXT=path`, by default ../shared/data/tinyshakespeare/input.txt) is cut by position: the first 90 % of the
bytes train tokenizer and model, the last 10 % are scored, every byte once and in order. The clock starts when the
process is started: imports, the tokenizer's training and every evaluation are inside. Three seeds; the worst counts.

The peer's figures were taken on the same kind of machine: nanoGPT's CPU recipe reaches 2.720 bits per byte after
145 s, its GPU recipe 2.120 after three minutes on an A100 (character level, the same cut).

A rate that decays towards the end of a run is what makes it good there, so each question has a run of its own, with a
recipe for its length: `sprint` asks for 2.720, `long` what is reached at 145 s. A model is scored once, at its end, so
the seconds to a figure are those of a whole run that ended at or below it. Last line: JSON with seconds_to_2.720_bpb,
seconds_to_2.120_bpb and bpb_at_145_s; null where a figure was not reached. Other work on the machine costs steps.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT.parent / "shared/data/tinyshakespeare/input.txt"
SEEDS = (1, 2, 3)
# seconds: when the last evaluation begins; target: bits per byte
SMALL = {
    "vocab": 512, "hidden_size": 128, "num_layers": 2, "head_size": 64, "mlp_size": 352, "context": 64, "batch": 16,
    "lr": 0.02, "embedding_lr": 0.01, "weight_decay": 0.05, "decay": 0.6, "merge_dropout": 0.0,
}  # fmt: skip
LARGE = {
    "vocab": 1024, "hidden_size": 192, "num_layers": 4, "head_size": 64, "mlp_size": 512, "context": 128, "batch": 16,
    "lr": 0.015, "embedding_lr": 0.0075, "weight_decay": 0.1, "decay": 0.6, "merge_dropout": 0.1,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "sprint": {"seconds": 14, "target": 2.720, **SMALL},
    "long": {"seconds": 139, "target": 2.120, **LARGE},
}
STRIDE = 0.25  # of a window is scored anew in an evaluation: the rest is context


def train_and_score(recipe: dict[str, Any], seed: int, text: Path, started: float) -> dict[str, Any]:
    """Train for the recipe's seconds since `started` [s since the epoch] and score the held-out bytes."""
    importlib.import_module("stages")  # chooses how threads wait, which must be before torch loads
    import numpy as np
    import torch

    from llm.data.loader import WindowLoader
    from llm.data.tokenizer import train_tokenizer
    from llm.evals.bits_per_byte import measure_bits_per_byte
    from llm.model.config import ModelConfig
    from llm.model.transformer import Transformer, init_weights
    from llm.train.local import LocalEngine
    from llm.train.optimiser import OptimiserConfig

    torch.set_num_threads(2)
    content = text.read_bytes()
    cut = len(content) * 9 // 10
    train, held_out = content[:cut].decode(errors="replace"), content[cut:].decode(errors="replace")
    tokenizer = train_tokenizer([train], recipe["vocab"])
    token_bytes, scored = tokenizer.token_bytes(), np.array(tokenizer.encode(held_out))
    heads = recipe["hidden_size"] // recipe["head_size"]
    sizes = {name: recipe[name] for name in ("hidden_size", "num_layers", "head_size", "mlp_size", "context")}
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_heads=heads, num_kv_heads=heads, **sizes)
    model = Transformer(shape)
    init_weights(model, seed)
    rates = {name: recipe[name] for name in ("lr", "embedding_lr", "weight_decay")}
    engine = LocalEngine(model.to(torch.bfloat16), OptimiserConfig(**rates))
    tokenizer.backend.model.dropout = recipe["merge_dropout"] or None  # another cut into tokens in every epoch
    step = epoch = 0
    budget = recipe["seconds"] - (begun := time.time() - started)
    while (done := (time.time() - started - begun) / budget) < 1:
        # every epoch begins at another byte, so that windows are cut at other places
        tokens = np.array(tokenizer.encode(train[(epoch * 997) % 4096 :]), dtype=np.uint16)
        loader = WindowLoader(tokens, recipe["context"], recipe["batch"], seed + epoch)
        for batch in range(loader.num_windows // recipe["batch"]):
            if (done := (time.time() - started - begun) / budget) >= 1:
                break
            engine.step(loader.batch(batch), min(1.0, (step + 1) / 10, max(1 - done, 0.01) / recipe["decay"]))
            step += 1
        epoch += 1
    trained = time.time() - started
    engine.restore_masters()
    model.to(torch.bfloat16)
    score = measure_bits_per_byte(model, scored, token_bytes, tokenizer.eos_id, shape.context, STRIDE)
    seconds, bpb = time.time() - started, score.bits / (len(content) - cut)
    return {
        "bpb": round(bpb, 4), "seconds": round(seconds, 1), "target": recipe["target"],
        "seconds_to_target": round(seconds, 1) if bpb <= recipe["target"] else None,
        "steps": step, "epochs": round(epoch - 1 + (batch + 1) / (loader.num_windows // recipe["batch"]), 1),
        "start_s": round(begun, 1), "evaluation_s": round(seconds - trained, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }  # fmt: skip


def start_run(recipe: dict[str, Any], seed: int, text: Path) -> dict[str, Any]:
    """Train in a process of its own and return what it found."""
    job = json.dumps({"recipe": recipe, "seed": seed, "text": str(text), "started": time.time()})
    command = [sys.executable, "-m", "benchmarks.shakespeare", "--job", job]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(arguments.job)
        print(json.dumps(train_and_score(job["recipe"], job["seed"], Path(job["text"]), job["started"])))
        return
    text = Path(os.environ.get("TEXT", TEXT))
    if not text.is_file():
        sys.exit(f"{text}: no such file; say TEXT=path of a plain-text file")
    found: dict[str, list[dict[str, Any]]] = {}
    for name, recipe in RUNS.items():
        found[name] = []
        for seed in SEEDS:
            found[name].append(start_run(recipe, seed, text))
            print(f"{name} seed {seed}: {found[name][-1]}", flush=True)
    soonest = {name: [one["seconds_to_target"] for one in runs] for name, runs in found.items()}
    summary = {
        "seconds_to_2.720_bpb": None if None in soonest["sprint"] else max(soonest["sprint"]),
        "seconds_to_2.120_bpb": None if None in soonest["long"] else max(soonest["long"]),
        "bpb_at_145_s": max(one["bpb"] for one in found["long"]),
        "long_s": max(one["seconds"] for one in found["long"]),
    }
    print(json.dumps({**summary, "runs": found}))


if __name__ == "__main__":
    main()
