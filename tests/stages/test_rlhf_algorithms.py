"""The rlhf stage by each algorithm on tiny models, and with answers from Ray actors: the bytes of one process."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from llm.config import Base
from llm.data.schema import Preference, hash_id
from llm.train.lora import LoraConfig
from stages import rlhf
from tests.stages.tiny_rlhf import ask, run_rlhf, write_deps

PARAMS = rlhf.Params(
    base=Base(seed=1, threads=1, dtype="fp32", device="cpu"),
    steps=12,
    prompts_per_step=4,
    answers_per_prompt=8,
    max_new_tokens=8,
    lr=1e-2,
    kl_bound=8.0,
    check_every=4,
    check_prompts=32,
    rules=rlhf.RuleWeights(docstring_match=0.0),
)


@pytest.fixture(scope="module")
def deps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rows = [Preference(hash_id(str(i)), "g", "s", "sibling", ask(i), "It sorts.", "It.") for i in range(80)]
    paths, judge = write_deps(tmp_path_factory.mktemp("rlhf"), rows)
    with torch.no_grad():
        judge.weight_HD[0].normal_(generator=torch.Generator().manual_seed(0))
    judge.save(paths["models/reward"])
    return paths


def run(deps: dict[str, Path], out: Path, **changes) -> dict:
    return run_rlhf(deps, out, PARAMS.model_copy(update=changes))


def test_each_algorithm_is_rewarded_more_within_the_bounds(deps, tmp_path):
    policies = set()
    for algorithm in ("grpo", "ppo", "dpo"):
        kept = run(deps, tmp_path / algorithm, algorithm=algorithm)["kept"]
        assert kept["reward_gain"]["low"] > 0, algorithm
        assert 0 < kept["kl"] <= PARAMS.kl_bound, algorithm
        policies.add((tmp_path / algorithm / "policy" / "model.safetensors").read_bytes())
    assert len(policies) == 3


def test_launchers_that_do_not_fit_are_refused():
    given = PARAMS.model_dump()
    with pytest.raises(ValidationError, match=r"rlhf\.workers=2: launcher: local is one process"):
        rlhf.Params.model_validate({**given, "workers": 2})
    with pytest.raises(ValidationError, match=r"rlhf\.lora\.base_bits=4"):
        rlhf.Params.model_validate({**given, "launcher": "ray", "lora": {"base_bits": 4}})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)], ids=["whole", "adapters"])
def test_ray_actors_give_the_bytes_of_one_process(deps, tmp_path, lora):
    alone = run(deps, tmp_path / "local", steps=2, lora=lora)
    spread = run(deps, tmp_path / "ray", steps=2, lora=lora, launcher="ray", workers=2)
    assert alone == spread
    for name in ("model.safetensors", "trace.jsonl"):
        ours, theirs = (tmp_path / launcher / "policy" / name for launcher in ("local", "ray"))
        assert ours.read_bytes() == theirs.read_bytes()
