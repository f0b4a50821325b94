"""Rlhf: sft model, reward model and prompts -> a policy that is rewarded more and has not gone far.

GRPO on prompts of the training split.  What is kept is the best policy that, on prompts which no step used,
stays within the bounds on KL and length; if there is none, sft itself, and the report says so.  With `lora` only
adapters learn, over one copy of sft's weights; models/policy is merged, and holds the adapter in adapter/.
"""

from typing import Any

from pydantic import Field

from llm.config import StageParams, require
from llm.data.tokenizer import Tokenizer
from llm.evals.statistics import as_metrics, paired_difference
from llm.model.folder import load_model, save_model
from llm.rl.grpo import Check, GRPOConfig, Optimised, Trainer, optimise
from llm.rl.prompts import plan_prompts, read_prompts
from llm.rl.reward_model import RewardModel
from llm.rl.rollout import make_reward
from llm.train.lora import LoraConfig, adapt_copy, save_adapted
from llm.train.trace import write_trace
from stages.plumbing.stage import Paths, main


class Params(GRPOConfig, StageParams):
    check_prompts: int = Field(128, ge=2, le=10**6, description="prompts set aside to measure policies on")
    principle_share: float = Field(0.2, ge=0, le=1, description="share of the prompts that are about a principle")
    max_prompt_tokens: int = Field(96, ge=4, le=1 << 20, description="longer prompts are left out")
    lora: LoraConfig | None = Field(None, description="train low-rank adapters; none: every weight learns")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    sft = paths.deps["models/sft"]
    tokenizer = Tokenizer.load(sft)
    reference = load_model(sft)
    policy = load_model(sft) if params.lora is None else adapt_copy(reference, params.lora, params.base.seed)
    reward_model = RewardModel.load(paths.deps["models/reward"])
    room = policy.config.context - params.max_new_tokens - 1
    prompts = read_prompts(
        paths.deps["data/clean"] / "preferences.parquet", tokenizer, min(params.max_prompt_tokens, room)
    )
    require(
        len(prompts) >= 2 * params.check_prompts,
        f"data/clean holds {len(prompts)} training prompts of at most rlhf.max_prompt_tokens="
        f"{params.max_prompt_tokens} tokens; at least twice rlhf.check_prompts={params.check_prompts} are needed",
    )
    check_prompts, train_prompts = prompts[: params.check_prompts], prompts[params.check_prompts :]
    trainer = Trainer(
        policy, reference, make_reward(reward_model, tokenizer.im_end_id), params,
        stop_ids=(tokenizer.im_end_id, tokenizer.eos_id), dtype=params.base.torch_dtype, seed=params.base.seed,
    )  # fmt: skip
    check_ids = [prompt.ids for prompt in check_prompts]
    before = trainer.calibrate(check_ids)
    plan = plan_prompts(train_prompts, params.steps, params.prompts_per_step, params.principle_share, params.base.seed)
    done = optimise(trainer, lambda step: plan[step], before, check_ids, paths.follow())
    if params.lora is None:
        save_model(policy, paths.outs["models/policy"])
    else:
        save_adapted(policy, params.lora, sft, paths.outs["models/policy"])
    tokenizer.save(paths.outs["models/policy"])
    write_trace(paths.outs["models/policy"], done.trace)
    return summarise(params, done, before, len(prompts))


def summarise(params: Params, done: Optimised, before: Check, num_prompts: int) -> dict[str, Any]:
    """Return what was kept and how it was chosen; the held-out figures are evaluate's."""
    after = dict(done.checks)[done.kept_step]
    gain = paired_difference(after.rollout.reward_B.double().numpy(), before.rollout.reward_B.double().numpy())
    return {
        "prompts": num_prompts,
        "kept_step": done.kept_step,
        "kept": {
            "reward_gain": as_metrics(gain),
            "kl": after.kl,
            "kl_bound": params.kl_bound,
            "length": after.length,
            "length_of_sft": before.length,
            "distinct": after.distinct,
        },
        "checks": [
            {"step": step, "reward": c.reward, "kl": c.kl, "length": c.length, "distinct": c.distinct}
            for step, c in done.checks
        ],
    }


if __name__ == "__main__":
    main(Params, run)
