"""Time of one training step on GPUs, by formula: products, what lies between them, waiting for others, the optimiser.

A model, not a measurement: `share` of llm/train/hardware.py is what steps reach without waiting, and communication
is volume over bandwidth. Published runs come out within 30 % (tests/llm/train/test_plan.py).
"""

from typing import NamedTuple

from llm.model.config import ModelConfig
from llm.model.flops import flops_per_token
from llm.train.footprint import BF16, FP32, Job, count_activation_bytes
from llm.train.hardware import Device
from llm.train.layout import Layout
from llm.train.memory import count_local

# Share of the products' time behind which reducing gradients and gathering weights can hide: they run beside the
# backward pass, which is two thirds of it, but for its first and last layers.
HIDDEN = 0.5
# A kept value is written and read forward, read backward, and its gradient is written and read.
TOUCHES = 5
# The chunked loss writes and reads each logit in bf16, twice in fp32 and as a gradient, eagerly (llm/train/loss.py).
LOGIT_BYTES = 48
NEWTON_SCHULZ = 5  # iterations of Muon


class StepTime(NamedTuple):
    """Seconds of one step by part."""

    products: float
    traffic: float = 0.0  # values between products, read and written
    recomputed: float = 0.0
    tensor: float = 0.0  # waiting for the ranks that share a matrix
    bubble: float = 0.0  # waiting for the other stages of the pipeline
    data: float = 0.0  # gradients and weights of the ranks that share the batch, beyond what hides behind products
    optimiser: float = 0.0

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self)


def estimate_step(job: Job, layout: Layout, device: Device) -> StepTime:
    """Return the time of a step."""
    shape = job.shape.model_copy(update={"context": job.context})
    rate = device.flops * device.share * layout.workers
    tokens = job.batch_size * job.context
    products = flops_per_token(shape) * tokens / rate
    vocabulary = 6.0 * shape.vocab_size * shape.hidden_size * tokens / rate
    blocks, logits = (size * tokens / layout.workers / device.bandwidth for size in _count_traffic(shape))
    recomputed = (products - vocabulary + blocks) / 3 if layout.checkpointing else 0.0
    tensor = _tensor_seconds(job, layout, device)
    work = products + blocks + logits + recomputed
    bubble = (work + tensor) * (layout.pipeline_parallel - 1) / job.passes(layout)
    data = max(0.0, _data_seconds(job, layout, device) - HIDDEN * work)
    optimiser = _optimiser_seconds(job, layout, device)
    return StepTime(products, blocks + logits, recomputed, tensor, bubble, data, optimiser)


def count_muon_flops(shape: ModelConfig) -> float:
    """Return the FLOPs of one Muon step over all hidden matrices.

    Source: arXiv:2502.16982, algorithm 1. With r <= c an iteration multiplies r x c by c x r, r x r by r x r, and
    r x r by r x c.
    """
    query, keys = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size
    D, M = shape.hidden_size, shape.mlp_size
    sizes = [sorted(one) for one in ((D, query + 2 * keys), (query, D), (D, 2 * M), (M, D))]
    return shape.num_layers * sum(NEWTON_SCHULZ * (4.0 * r * r * c + 2.0 * r**3) for r, c in sizes)


def _count_traffic(shape: ModelConfig) -> tuple[float, float]:
    """Return the bytes per token that blocks, and the loss, read and write between their products."""
    block, last = count_activation_bytes(shape, BF16, shape.context, True, False)
    return TOUCHES * (shape.num_layers * block.kept + last), LOGIT_BYTES * shape.vocab_size


def _tensor_seconds(job: Job, layout: Layout, device: Device) -> float:
    """Each block gathers and scatters its input twice forward and twice backward, once more where it is recomputed.

    Source: arXiv:2205.05198, section 4.2.2: as much as two all-reduces a pass.
    """
    t = layout.tensor_parallel
    if t == 1:
        return 0.0
    sequences = job.batch_size / layout.ranks
    stream = BF16 * sequences * job.context * job.shape.hidden_size
    exchanges = 4 + 2 * layout.checkpointing
    layers = job.shape.num_layers / layout.pipeline_parallel
    return layers * exchanges * 2 * (t - 1) / t * stream / device.link


def _data_seconds(job: Job, layout: Layout, device: Device) -> float:
    """Return how long the ranks that share the batch talk, if nothing else went on.

    DeepSpeed reduces gradients once a step under ZeRO 0 and 1 and once a pass under 2 and 3; it gathers the stepped
    weights once, and under ZeRO 3 for every forward and backward of a pass. FSDP2 gathers once and reduces once.
    """
    n = layout.ranks
    if n == 1:
        return 0.0
    local = count_local(job.shape, layout.tensor_parallel, layout.pipeline_parallel, 0)
    passes = job.passes(layout)
    gathered = BF16 * local * (2 * passes if layout.zero_stage == 3 and not layout.is_sharded else 1)
    if layout.is_sharded:
        reduced = FP32 * local
    else:
        reduced = BF16 * local * (passes if layout.zero_stage >= 2 else 1)
    within = layout.workers <= device.per_node
    return (gathered + reduced) * (n - 1) / n / (device.link if within else device.network)


def _optimiser_seconds(job: Job, layout: Layout, device: Device) -> float:
    """AdamW reads four fp32 values and writes three; Muon also multiplies."""
    local = count_local(job.shape, layout.tensor_parallel, layout.pipeline_parallel, 0)
    owned = local / layout.ranks if layout.is_sharded or layout.zero_stage else local
    seconds = 7 * FP32 * owned / device.bandwidth
    if layout.workers == 1 and job.optimiser == "muon":
        seconds += count_muon_flops(job.shape) / (device.flops * device.share)
    return seconds


def count_model_flops(job: Job) -> float:
    """Return the FLOPs of a step that MFU counts: no recomputation, no optimiser."""
    shape = job.shape.model_copy(update={"context": job.context})
    return flops_per_token(shape) * job.batch_size * job.context
