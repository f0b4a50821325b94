"""Train the tiny model of a stage in a process of its own; print the digest of its weights. Run by tests.

    python train_until_killed.py pretrain|sft|reward|rlhf SCRATCH [STEPS]

A line `did N steps` on stderr follows each step.
"""

import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from llm.config import Base
from llm.data.loader import PackedLoader, WindowLoader
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.judge import Judge
from llm.rl.pairs import Pair, plan_batches
from llm.rl.policy_engine import PolicyConfig, PolicyEngine, Task, optimise
from llm.rl.prompts import Prompt
from llm.rl.reward_model import RewardModel
from llm.rl.reward_training import RewardConfig, RewardEngine, train_reward_model
from llm.train.early_stop import EarlyStop, EarlyStopConfig
from llm.train.local import LocalEngine, TrainConfig, evaluate_loss
from llm.train.loop import train

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, head_size=32, mlp_size=96, context=64
)
BASE = Base(dtype="bf16", threads=1)
STEPS = 60


def make_model() -> Transformer:
    model = Transformer(SHAPE)
    init_weights(model, 5)
    return model


def draw_tokens(count: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, 40, count).cumsum() % 300).astype(np.uint16)


def run_stage(stage: str, scratch: Path, steps: int = STEPS, checkpoint_every: int = 1) -> torch.nn.Module:
    """Train as the stage does, with a checkpoint after every step, so that a kill often meets one being written."""
    torch.set_num_threads(BASE.threads)
    if stage == "reward":
        pairs = [make_pair(number) for number in range(40)]
        config = RewardConfig(steps=steps, batch_pairs=4, checkpoint_every=checkpoint_every)
        reward_model = RewardModel(make_model())
        train_reward_model(reward_model, plan_batches(pairs, steps, 4, {}, 1), pairs[:8], config, BASE, scratch)
        return reward_model
    if stage == "rlhf":
        return run_rlhf(scratch, steps, checkpoint_every)
    config = TrainConfig(steps=steps, batch_size=4, checkpoint_every=checkpoint_every, log_every=2)
    loader: Any = WindowLoader(draw_tokens(4000, 0), 32, 4, 1)
    if stage == "sft":
        rows = [(draw_tokens(8 + n % 9, n).tolist(), [0] * 4 + [1] * (4 + n % 9)) for n in range(50)]
        loader = PackedLoader(rows, 32, 4, 1, 0)
    model = make_model().to(BASE.torch_dtype)
    engine = LocalEngine(model, config)
    watch = None
    if stage == "sft":
        held_out = [loader.batch(9)]
        early = EarlyStopConfig(eval_every=5, patience=steps)
        watch = EarlyStop(early, steps, lambda: evaluate_loss(model, held_out), engine.keep_weights)
    train(engine, loader.batch, config, BASE, scratch, held_out=watch)
    engine.return_to_kept()
    engine.restore_masters()
    return model


def make_pair(number: int) -> Pair:
    prompt, chosen, rejected = (draw_tokens(6, 3 * number + part).tolist() for part in range(3))
    return Pair(f"{number:03d}", "made", None, prompt, chosen, rejected, 0.0, False, 0)


def run_rlhf(scratch: Path, steps: int, checkpoint_every: int) -> Transformer:
    """A policy under the cost bounds of a reward model whose heads are random."""
    judge = RewardModel(make_model())
    with torch.no_grad():
        judge.weight_HD.normal_(generator=torch.Generator().manual_seed(0))
    config = PolicyConfig(
        steps=steps, prompts_per_step=4, answers_per_prompt=2, max_new_tokens=4, check_every=4,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    prompts = [Prompt(str(n), draw_tokens(4, n).tolist(), "justice" if n % 2 else None) for n in range(4 * steps + 8)]
    policy = make_model()
    engine = PolicyEngine(policy, Task(make_model(), Judge(judge, 1), config, BASE, (1,)))
    optimise(engine, lambda step: prompts[8 + 4 * step : 12 + 4 * step], prompts[:8], BASE, scratch)
    return policy


def digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of all weights."""
    blob = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(blob).hexdigest()


def tell_steps(engine: Any) -> None:
    """Make an engine class say on stderr how many steps this process has taken."""
    step, count = engine.step, 0

    def step_and_tell(self: Any, batch: Any, scale: float) -> Any:
        nonlocal count
        values = step(self, batch, scale)
        count += 1
        print(f"did {count} steps", file=sys.stderr, flush=True)
        return values

    engine.step = step_and_tell


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tell_steps(LocalEngine)
    tell_steps(RewardEngine)
    tell_steps(PolicyEngine)
    stage, scratch, *rest = sys.argv[1:]
    try:
        print(digest(run_stage(stage, Path(scratch), *map(int, rest))))
    except KeyboardInterrupt:  # as a stage's entry point turns it into an exit status
        sys.exit(130)
