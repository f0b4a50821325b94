"""A run that is stopped, at any moment and in any way, ends in the same bytes as one that is not."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llm.config import Base
from llm.data.loader import WindowLoader
from llm.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, step_of
from llm.train.local import LocalEngine, TrainConfig
from llm.train.loop import finish, train
from llm.train.schedule import ScheduleConfig, count_stable_steps, is_prefix, lr_scale

SCRIPT = Path(__file__).with_name("train_until_killed.py")
spec = importlib.util.spec_from_file_location("train_until_killed", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
CONFIG = TrainConfig(steps=12, batch_size=4, checkpoint_every=3, log_every=2, warmup_steps=2)


def run_training(scratch: Path | None, config: TrainConfig = CONFIG, base: Base = script.BASE):
    torch.set_num_threads(base.threads)
    model = script.make_model().to(base.torch_dtype)
    engine = LocalEngine(model, config)
    loader = WindowLoader(script.draw_tokens(4000, 0), 32, config.batch_size, 1)
    trained = train(engine, loader.batch, config, base, scratch)
    engine.restore_masters()
    return script.digest(model), trained.trace


def start(stage: str, scratch: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(SCRIPT), stage, str(scratch)], stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stderr:
        if line.startswith(f"did {step} "):
            return
    raise AssertionError(f"the process ended before step {step}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "rlhf"])
def test_killed_twice_ends_in_the_same_bytes(stage, tmp_path):
    """SIGKILL at two moments drawn from the operating system; every step writes a checkpoint, and may be cut in it."""
    whole = script.digest(script.run_stage(stage, tmp_path / "whole", checkpoint_every=1000))
    reached = 0
    for _ in range(2):
        draw = int.from_bytes(os.urandom(4), "little")
        after, delay = 2 + draw % 20, (draw >> 8) % 30 / 1000
        print(f"{stage}: killed {delay * 1e3:.0f} ms after its step {after}")
        process = start(stage, tmp_path / "killed")
        wait_for_step(process, after)
        time.sleep(delay)  # the moment within a step, which no line can mark
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        kept = step_of(list_checkpoints(tmp_path / "killed")[-1])
        assert kept >= reached + after - 1
        reached = kept
    command = [sys.executable, str(SCRIPT), stage, str(tmp_path / "killed")]
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"resumed at step {reached}" in resumed.stderr
    assert resumed.stderr.count("did ") == script.STEPS - reached, "only the steps that were left"
    assert resumed.stdout.strip() == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_and_exits(number, tmp_path):
    process = start("pretrain", tmp_path)
    wait_for_step(process, 5)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number, said
    assert "stopping after this step" in said
    assert step_of(list_checkpoints(tmp_path)[-1]) >= 5
    done = subprocess.run([sys.executable, str(SCRIPT), "pretrain", str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == script.digest(script.run_stage("pretrain", tmp_path / "whole"))


def test_a_longer_run_goes_on_from_the_stable_phase(tmp_path, caplog):
    caplog.set_level("INFO")
    short, _ = run_training(tmp_path)
    finish(CONFIG, tmp_path)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [
        7
    ]  # 12 steps, six of decay; the first is at the peak
    longer = CONFIG.model_copy(update={"steps": 20})
    continued, trace = run_training(tmp_path, longer)
    assert "resumed at step 7 of a run of 12 steps" in caplog.text
    fresh, fresh_trace = run_training(None, longer)
    assert continued == fresh != short
    assert trace == fresh_trace


def test_a_checkpoint_from_the_decay_does_not_fit_a_longer_run(tmp_path, caplog):
    caplog.set_level("INFO")
    run_training(tmp_path)  # ends with checkpoints of steps 7, 9 and 12
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [7, 9, 12]
    continued, _ = run_training(tmp_path, CONFIG.model_copy(update={"steps": 13}))
    assert "resumed at step 7" in caplog.text
    assert continued == run_training(None, CONFIG.model_copy(update={"steps": 13}))[0]
    # negative control: the weights after step 9 of the shorter run are others than those of the longer
    assert not is_prefix(9, (12, CONFIG), (13, CONFIG))


def test_rates_until_the_decay_do_not_depend_on_the_length():
    config = ScheduleConfig(warmup_steps=3, decay=0.4)
    for steps in (10, 25, 60):
        stable = count_stable_steps(steps, config)
        assert is_prefix(stable, (steps, config), (1000, config))
        assert lr_scale(stable, steps, config) < lr_scale(stable, 1000, config)


def test_checkpoints_come_by_time_too(tmp_path):
    """No step is due by number but the last before the decay and the last of all; by the clock each one is."""
    rarely = CONFIG.model_copy(update={"checkpoint_every": 10**6})
    run_training(tmp_path / "steps", rarely)
    assert [step_of(path) for path in list_checkpoints(tmp_path / "steps")] == [7, 12]
    run_training(tmp_path / "time", rarely.model_copy(update={"checkpoint_minutes": 1e-9}))
    assert [step_of(path) for path in list_checkpoints(tmp_path / "time")] == [7, 11, 12]


def test_newest_two_and_the_kept_one_stay(tmp_path):
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, {"x": torch.ones(2)}, {}, keep=3)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [3, 5, 6]


def test_what_a_killed_writer_left_is_removed_and_never_read(tmp_path):
    save_checkpoint(tmp_path, 1, {"x": torch.ones(2)}, {"n": 1})
    (tmp_path / "step-00000002.partial").write_bytes(b"half")
    assert load_checkpoint(tmp_path)[0] == 1
    save_checkpoint(tmp_path, 3, {"x": torch.ones(2)}, {"n": 3})
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_falls_back(damage, tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"x": torch.full((300,), float(step))}, {"n": step})
    newest = list_checkpoints(tmp_path)[-1]
    content = newest.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    newest.write_bytes({"truncate": content[:-40], "flip": flipped, "empty": b""}[damage])
    step, tensors, extra = load_checkpoint(tmp_path)
    assert (step, tensors["x"].unique().tolist(), extra) == (1, [1.0], {"n": 1})
    assert "damaged" in caplog.text
