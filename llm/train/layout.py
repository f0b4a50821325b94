"""How the workers of a cluster share a model, and which combinations of sizes can be split."""

from typing import NamedTuple

from llm.config import require
from llm.model.config import ModelConfig


class Layout(NamedTuple):
    """Groups of tensor_parallel x pipeline_parallel workers hold one model; ZeRO shards it over the groups."""

    workers: int
    zero_stage: int = 2
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def group(self) -> int:
        """Workers that hold one model together."""
        return self.tensor_parallel * self.pipeline_parallel


def check_layout(shape: ModelConfig, layout: Layout, batch_size: int, context: int) -> None:
    """Raise ConfigError where the sizes cannot be split.

    With tensor_parallel and pipeline_parallel at 1 any ZeRO stage serves, through DeepSpeed. Otherwise torch's FSDP2
    shards weights, gradients and moments over the groups, which is stage 3, and no other stage is to be had.
    """
    workers, zero_stage, tensor, pipeline = layout
    if layout.group == 1:
        return
    require(
        zero_stage == 3,
        f"pretrain.zero_stage={zero_stage}: with tensor_parallel or pipeline_parallel above 1 say zero_stage: 3",
    )
    require(
        workers % layout.group == 0,
        f"pretrain.workers={workers} must be a multiple of tensor_parallel x pipeline_parallel = {layout.group}",
    )
    sizes = {name: getattr(shape, name) for name in ("num_heads", "num_kv_heads", "mlp_size", "vocab_size")}
    for name, size in (sizes | {"pretrain.context": context}).items():
        require(size % tensor == 0, f"pretrain.tensor_parallel={tensor} must divide {name}={size}")
    require(
        shape.num_layers % pipeline == 0,
        f"pretrain.pipeline_parallel={pipeline} must divide num_layers={shape.num_layers}",
    )
    require(
        pipeline == 1 or not shape.tie_embeddings,
        "pretrain.pipeline_parallel above 1 needs a shape with tie_embeddings: false, because the embedding is on the "
        "first stage and the unembedding on the last",
    )
    groups = workers // layout.group
    require(
        batch_size % groups == 0 and batch_size // groups >= pipeline,
        f"pretrain.batch_size={batch_size} must be a multiple of the {groups} groups of workers, and give each at "
        f"least pipeline_parallel={pipeline} sequences",
    )
