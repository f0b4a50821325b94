"""Two actors answer as this process does, with adapters and without, also when one of them is killed in mid-run."""

import threading
import time

import psutil
import pytest
import torch

from llm.config import Base
from llm.infer.generate import Completion, generate
from llm.rl.ray_rollout import RayGenerator, copy_without_weights, start_generator
from llm.train.lora import LoraConfig, adapt_copy
from tests.llm.rl.tiny import STOP, make_model, make_prompts

BASE = Base(dtype="fp32", threads=2, device="cpu")
OPTIONS = {"max_new_tokens": 20, "stop_ids": (STOP,)}


def test_a_copy_without_weights_takes_those_of_its_model():
    model = adapt_copy(make_model(), LoraConfig(rank=2, alpha=4), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    empty = copy_without_weights(model)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
    empty.load_state_dict({name: p.detach() for name, p in model.named_parameters()}, assign=True)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(empty(tokens), model(tokens))


def test_a_share_of_the_prompts_is_answered_as_among_all():
    model, prompts = make_model(), make_prompts(20, 1)
    whole = generate(model, prompts, seed=7, **OPTIONS)
    share = range(1, 20, 3)
    part = generate(model, [prompts[i] for i in share], seed=[(7, i) for i in share], **OPTIONS)
    assert [one.tokens for one in part] == [whole[i].tokens for i in share]
    # Negative control: seeds by the place within the share give other answers.
    wrong = generate(model, [prompts[i] for i in share], seed=7, **OPTIONS)
    assert [one.tokens for one in wrong] != [whole[i].tokens for i in share]


def assert_same(ours: list[Completion], theirs: list[Completion]) -> None:
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert [one.finish for one in ours] == [one.finish for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def kill_an_actor(killed: threading.Event) -> None:
    """Send SIGKILL to one of this process's actors while it answers."""
    while not killed.is_set():
        for process in psutil.Process().children(recursive=True):
            if "Sampler.generate" in " ".join(process.cmdline()):
                process.kill()
                killed.set()
                return
        time.sleep(0.001)


def ask_while_one_dies(ask: RayGenerator, model, prompts) -> list[Completion]:
    killed = threading.Event()
    killer = threading.Thread(target=kill_an_actor, args=(killed,))
    killer.start()
    try:
        for seed in range(100):  # an answer takes milliseconds: until the killer has met one at work
            answers = ask(model, prompts, seed=seed, **OPTIONS)
            assert_same(answers, generate(model, prompts, seed=seed, **OPTIONS))
            if killed.is_set():
                return ask(model, prompts, seed=3, **OPTIONS)
    finally:
        killed.set()
        killer.join()
    raise AssertionError("no actor was killed in mid-run")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_actors_answer_as_this_process_does():
    prompts = make_prompts(41, 1)
    model = make_model()
    with start_generator(model, 2, BASE) as ask:
        assert len(ask.actors) == 2
        assert_same(ask(model, prompts, seed=5, **OPTIONS), generate(model, prompts, seed=5, **OPTIONS))
        assert_same(ask(model, prompts[:1], seed=5, **OPTIONS), generate(model, prompts[:1], seed=5, **OPTIONS))
        before = ask(model, prompts, seed=5, **OPTIONS)
        with torch.no_grad():
            model.embedding.weight.mul_(8.0)  # as after an optimiser's step: the new weights answer
        after = ask(model, prompts, seed=5, **OPTIONS)
        assert [one.tokens for one in after] != [one.tokens for one in before]
        assert_same(after, generate(model, prompts, seed=5, **OPTIONS))
        assert_same(ask_while_one_dies(ask, model, prompts), generate(model, prompts, seed=3, **OPTIONS))
