"""Each algorithm of rlhf on the smoke recipe: rewarded more by its judge, by one that it never met, and by a rule."""

import json

import pytest
from ruamel.yaml import YAML

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "dpo"])
def test_the_reward_rises_under_three_judges(smoke_project, algorithm):
    file = smoke_project.root / "params.yaml"
    before = file.read_text()
    params = YAML().load(before)
    params["rlhf"]["algorithm"] = algorithm
    try:
        YAML().dump(params, file)
        smoke_project.run("dvc", "repro", "evaluate", timeout_s=900)
        reward = json.loads((smoke_project.root / "reports/evaluate.json").read_text())["metrics"]["reward"]
    finally:
        file.write_text(before)
        smoke_project.run("dvc", "repro", timeout_s=900)
    assert reward["delta_low"] > 0
    assert reward["rule"]["delta_low"] > 0
    # The second judge's interval is wide on so few prompts; docs/log.md has its figures.
    assert reward["second"]["delta"] > 0
