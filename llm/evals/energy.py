"""Modelled energy: joules from counted operations and assumed efficiencies. Nothing here was measured.

Arithmetic costs energy, and so do the bytes moved for it; the two are added as if nothing else drew power. Idle power,
cooling, caches, activations and the making of the machine are left out, so that the figure is good for comparing two
models on one assumed device, and not for a bill.
"""

from llm.config import BaseParams, require
from llm.model.config import ModelConfig
from llm.model.flops import flops_per_token


class AssumedDevice(BaseParams):
    """Round figures: 200 GFLOP/s at 20 W, and 25 pJ per bit from memory (Horowitz, ISSCC 2014, figure 1.1.9: 20-40)."""

    name: str = "two cores of a server CPU"
    flops_per_joule: float = 1e10
    joules_per_byte: float = 2e-10
    bytes_per_weight: float = 2.0  # bf16; each token of an answer reads all weights once
    training_bytes_per_weight: float = 32.0  # a step reads and writes weight, gradient and two moments in fp32


def model_energy(
    config: ModelConfig,
    prompt_tokens: float,
    answer_tokens: float,
    training_tokens: float,
    training_steps: float,
    device: AssumedDevice | None = None,
) -> dict[str, object]:
    """Return the modelled joules of one answer, generated alone, and of training, with what was assumed.

    answer   = (P + A) F / 3 / e + (1 + A) W b m        training = T F / e + S W t m

    where F is the FLOPs of training a token at full context, of which the forward pass is a third, W the weights that
    tokens are multiplied with, and P and A, T and S the counts below.

    Args:    config: the model's shape.  prompt_tokens, answer_tokens: P and A, means.  training_tokens, training_steps:
             T and S, summed over all stages.  device: e [FLOP/J], m [J/byte], b and t [bytes]; a round one by default.
    Returns: as reports hold it, in joules.
    Raises:  ConfigError: a negative count.
    Source:  F is PaLM's count (`flops_per_token`); weights read per token: Pope et al. 2022, arXiv:2211.05102, sec. 2.
    """
    counts = {"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
    counts |= {"training_tokens": training_tokens, "training_steps": training_steps}
    require(min(counts.values()) >= 0, f"energy is modelled from counts of at least 0, got {counts}")
    device, flops = device or AssumedDevice(), flops_per_token(config)
    attention = 6.0 * config.num_layers * config.num_heads * config.head_size * config.context
    weight_joules = (flops - attention) / 6.0 * device.joules_per_byte
    arithmetic = (prompt_tokens + answer_tokens) * flops / 3.0 / device.flops_per_joule
    answer = arithmetic + (1 + answer_tokens) * weight_joules * device.bytes_per_weight
    training = training_tokens * flops / device.flops_per_joule
    training += training_steps * weight_joules * device.training_bytes_per_weight
    assumptions = {**device.model_dump(), **counts}
    return {"modelled_joules_per_answer": answer, "modelled_joules_training": training, "assumptions": assumptions}
