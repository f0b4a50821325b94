"""Bytes that one rank keeps between steps: weights and optimiser state under ZeRO, tensor and pipeline parallelism.

Activations and the buffers of collectives are not here. Each formula is compared with the tensors of real engines by
their tests.  Source: ZeRO, arXiv:1910.02054, section 3, figure 1 (mixed precision, Adam: K = 12).
"""

from typing import Literal, NamedTuple

from llm.config import require
from llm.model.config import ModelConfig

Dtype = Literal["bf16", "fp32"]
MASTER_BYTES, MOMENTS_BYTES = 4, 8  # fp32 weight; AdamW's two fp32 moments


class RankBytes(NamedTuple):
    """parameters: compute copies.  gradients: at the end of a backward pass.  masters: fp32.  moments: AdamW's."""

    parameters: float
    gradients: float
    masters: float
    moments: float

    @property
    def total(self) -> float:
        """All four together."""
        return sum(self)


def bytes_per_rank(num_params: int, world: int, zero_stage: int, dtype: Dtype, num_whole: int = 0) -> RankBytes:
    """Return what DeepSpeed keeps on each of `world` data-parallel ranks.

    Args:    num_params: of the model (of this rank's shard of it under tensor or pipeline parallelism).
             num_whole: parameters that ZeRO 3 leaves whole on every rank: the vectors, `count_vectors`.
    Differs: under ZeRO DeepSpeed keeps an fp32 master beside fp32 weights too.
    """
    size = compute_bytes(dtype)
    states_over = world if zero_stage >= 1 else 1
    weights_over = world if zero_stage == 3 else 1
    has_masters = zero_stage >= 1 or dtype == "bf16"
    whole = num_whole if zero_stage == 3 else 0
    return RankBytes(
        parameters=size * ((num_params - whole) / weights_over + whole),
        gradients=size * num_params / (world if zero_stage >= 2 else 1),
        masters=MASTER_BYTES * num_params / states_over if has_masters else 0.0,
        moments=MOMENTS_BYTES * num_params / states_over,
    )


def bytes_per_rank_sharded(num_local: int, data_parallel: int, dtype: Dtype) -> RankBytes:
    """Return what the torch engine keeps on a rank that holds `num_local` parameters of a tensor and pipeline shard.

    FSDP2 keeps fp32 weights and moments sharded over the data-parallel ranks; the compute copy and the summed fp32
    gradient exist whole from the first micro-batch to the last.
    """
    return RankBytes(
        parameters=float(compute_bytes(dtype) * num_local),
        gradients=4.0 * num_local,
        masters=MASTER_BYTES * num_local / data_parallel,
        moments=MOMENTS_BYTES * num_local / data_parallel,
    )


def compute_bytes(dtype: Dtype) -> int:
    """Return the size of one compute weight."""
    return 2 if dtype == "bf16" else 4


def count_vectors(shape: ModelConfig) -> int:
    """Return the parameters that are no matrices: the weights of all norms."""
    return shape.num_layers * _block_vectors(shape) + shape.hidden_size


def count_local(shape: ModelConfig, tensor_parallel: int, pipeline_parallel: int, stage: int) -> int:
    """Return the parameters on each rank of one pipeline stage: matrices are split, norms are whole on every rank."""
    require(
        shape.num_layers % pipeline_parallel == 0,
        f"pipeline_parallel={pipeline_parallel} must divide num_layers={shape.num_layers}",
    )
    query, keys_values = shape.num_heads * shape.head_size, 2 * shape.num_kv_heads * shape.head_size
    block = shape.hidden_size * (2 * query + keys_values + 3 * shape.mlp_size)
    layers = shape.num_layers // pipeline_parallel
    first, last = stage == 0, stage == pipeline_parallel - 1
    vocabularies = first + (last and not shape.tie_embeddings)
    matrices = layers * block + vocabularies * shape.vocab_size * shape.hidden_size
    return matrices // tensor_parallel + layers * _block_vectors(shape) + last * shape.hidden_size


def _block_vectors(shape: ModelConfig) -> int:
    return 2 * shape.hidden_size + 2 * shape.head_size
