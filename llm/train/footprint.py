"""Peak memory of one rank in a training step, by part and by formula.

Activations are counted tensor by tensor as llm/model/transformer.py saves them for the backward pass, the loss as
llm/train/loss.py takes it; tests compare both with what autograd keeps and with the peak of real steps.

Symbols: D hidden, H query heads, G key/value heads, K head size, M inner width of the MLP, V vocabulary. Sizes in
bytes unless named otherwise.
"""

from typing import Literal, NamedTuple

from llm.model.config import ModelConfig
from llm.model.transformer import SHORT_T
from llm.train.layout import Layout
from llm.train.loss import CHUNK
from llm.train.memory import bytes_per_rank, bytes_per_rank_sharded, count_local

BF16, FP32 = 2, 4
BUCKET = 500_000_000  # values that DeepSpeed reduces or gathers at once, by default
LIVE = 1_000_000_000  # values that ZeRO 3 keeps gathered at once, by default
CONTEXT_BYTES = 1.5e9  # a CUDA context with its libraries, and NCCL's buffers


class Job(NamedTuple):
    """What is to be trained; `context` in tokens, `batch_size` in sequences, `tokens` in all."""

    shape: ModelConfig
    context: int
    batch_size: int
    tokens: int
    optimiser: Literal["muon", "adamw"] = "adamw"

    def passes(self, layout: Layout) -> int:
        """Return how many micro-batches each rank takes per step."""
        return max(1, self.batch_size // (layout.ranks * layout.micro_batch))


class Footprint(NamedTuple):
    """Peak of one rank by part; `gradients` counts what is there beside the activations at the peak."""

    parameters: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self)


def measure_footprint(job: Job, layout: Layout, on_gpu: bool) -> Footprint:
    """Return the peak of the fullest rank."""
    stages = {0, layout.pipeline_parallel - 1}
    return max((_stage_footprint(job, layout, on_gpu, stage) for stage in stages), key=lambda one: one.total)


def _stage_footprint(job: Job, layout: Layout, on_gpu: bool, stage: int) -> Footprint:
    shape, tokens = job.shape, layout.micro_batch * job.context
    t, p = layout.tensor_parallel, layout.pipeline_parallel
    block, last = count_activation_bytes(shape, BF16, job.context, on_gpu, layout.checkpointing)
    # 1F1B: the first stage has begun as many micro-batches as there are stages before the first one comes back
    in_flight = min(p - stage, job.passes(layout))
    activations = tokens * in_flight * block.kept * shape.num_layers / p / t
    logits = 0.0
    if stage == p - 1:
        activations += tokens * last / t
        logits = loss_bytes(shape, tokens) / t
    activations += max(0.0, tokens * block.recomputed / t - logits)  # when blocks come back the logits have gone
    total = count_local(shape, t, p, stage)
    if layout.is_sharded:
        state = bytes_per_rank_sharded(total, layout.ranks, "bf16")
        return Footprint(
            state.parameters, state.gradients, state.masters + state.moments, activations, logits, CONTEXT_BYTES
        )
    context = CONTEXT_BYTES if on_gpu else 0.0
    if layout.workers > 1:
        state = bytes_per_rank(total, layout.workers, layout.zero_stage, "bf16")
        buffers = context + _deepspeed_buffers(total, layout)
        return Footprint(state.parameters, state.gradients, state.masters + state.moments, activations, logits, buffers)
    # fp32 gradients wait beside the activations from the second micro-batch on, else they come when those have gone
    waiting = FP32 * total if job.passes(layout) > 1 else 0.0
    gradients = waiting + max(0.0, (BF16 if waiting else FP32) * total - activations - logits)
    return Footprint(BF16 * total, gradients, local_optimiser_bytes(job, total), activations, logits, context)


class BlockBytes(NamedTuple):
    """Per token: what each block keeps until its backward pass, and what one block holds when it is computed again."""

    kept: float
    recomputed: float


def count_activation_bytes(
    shape: ModelConfig, element: int, context: int, on_gpu: bool, checkpointing: bool
) -> tuple[BlockBytes, float]:
    """Return (bytes of a block, bytes of the last norm), both per token.

    Args: element: size of a compute value.  context: tokens of a window.
          on_gpu: RMSNorm is one kernel there and flash attention shares key heads; a CPU's RMSNorm works in fp32 and
          keeps that, its attention needs a key for every query head, and in short windows of bf16 it keeps the scores.
    """
    D, M = shape.hidden_size, shape.mlp_size
    query, keys = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size
    stream_norm = _norm_bytes(D, 1, element, on_gpu) + element * D  # with the input of the product behind it
    head_norms = _norm_bytes(query + keys, shape.num_heads + shape.num_kv_heads, element, on_gpu)
    # SDPA keeps query, key, value, its output and fp32 log-sums. Repeated keys and values are copies, otherwise the
    # value is a view that keeps the whole qkv product. The output is copied for the product behind it.
    repeated = shape.num_heads > shape.num_kv_heads and not on_gpu
    sources = 3 * query if repeated else 2 * query + 3 * keys  # query, key and value
    attention = element * (sources + 2 * query) + FP32 * shape.num_heads
    if not on_gpu and element == BF16 and context <= SHORT_T:
        attention = element * (3 * query + shape.num_heads * context + query)  # copies, the softmax, the output's copy
    whole = 2 * stream_norm + head_norms + attention + element * 4 * M  # MLP: gate and up, silu(gate), their product
    again = whole + element * 5 * M  # with the gradients of the MLP's values
    block = BlockBytes(element * D, again) if checkpointing else BlockBytes(whole, 0.0)
    return block, stream_norm


def loss_bytes(shape: ModelConfig, tokens: int, element: int = BF16) -> float:
    """Return the peak inside the chunked loss: logits of one chunk, and gradients of hidden states and unembedding.

    Either two fp32 copies of the logits and one in compute type exist beside the fp32 gradient of the unembedding, or
    one of each while that gradient's next part does.
    """
    logits = min(CHUNK, tokens) * shape.vocab_size
    weight = shape.vocab_size * shape.hidden_size
    softmax = (2 * FP32 + element) * logits + FP32 * weight
    gradient = (FP32 + element) * logits + (2 * FP32 + element) * weight
    return max(softmax, gradient) + element * tokens * shape.hidden_size


def local_optimiser_bytes(job: Job, total: int) -> float:
    """Return masters and moments of the local engine: AdamW has two moments, Muon one on the hidden matrices."""
    shape = job.shape
    vocabularies = (1 if shape.tie_embeddings else 2) * shape.vocab_size * shape.hidden_size
    vectors = shape.num_layers * 2 * (shape.hidden_size + shape.head_size) + shape.hidden_size
    saved = FP32 * (total - vocabularies - vectors) if job.optimiser == "muon" else 0
    return 3 * FP32 * total - saved


def _deepspeed_buffers(total: int, layout: Layout) -> float:
    """Return reduction and gather buckets, and the fp32 copy of this rank's gradients that AdamW reads."""
    buckets = BF16 * min(BUCKET, total) + BF16 * min(LIVE if layout.zero_stage == 3 else BUCKET, total)
    return buckets + FP32 * total / (layout.workers if layout.zero_stage else 1)


def _norm_bytes(size: int, rows: int, element: int, fused: bool) -> float:
    """Return what RMSNorm keeps of `size` values in `rows` rows: input and 1/rms; unfused also the fp32 result."""
    return (element if fused else 2 * FP32) * size + FP32 * rows
