"""How a job lies on the ranks of a cluster, and which layouts can be run: all sizes have to split evenly."""

from typing import NamedTuple

from llm.config import require
from llm.model.config import ModelConfig


class Layout(NamedTuple):
    """How a job lies on its ranks: one worker is the local engine, several without tensor and pipeline DeepSpeed."""

    workers: int = 1
    zero_stage: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    micro_batch: int = 1
    checkpointing: bool = False

    @property
    def ranks(self) -> int:
        """Ranks that share the batch."""
        return self.workers // (self.tensor_parallel * self.pipeline_parallel)

    @property
    def is_sharded(self) -> bool:
        """The torch engine of llm/train/parallel.py: FSDP2 over whatever is not tensor or pipeline."""
        return self.tensor_parallel * self.pipeline_parallel > 1


def check_layout(shape: ModelConfig, layout: Layout, batch_size: int, context: int) -> None:
    """Raise ConfigError where tensor and pipeline parallelism cannot split the sizes; ZeRO alone splits any."""
    if not layout.is_sharded:
        return
    tensor, pipeline, groups = layout.tensor_parallel, layout.pipeline_parallel, layout.ranks
    require(
        layout.workers == groups * tensor * pipeline,
        f"pretrain.workers={layout.workers} must be a multiple of tensor_parallel x pipeline_parallel = "
        f"{tensor * pipeline}",
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
        "pretrain.pipeline_parallel above 1 needs pretrain.tie_embeddings: false, because the embedding is on the "
        "first stage and the unembedding on the last",
    )
    require(
        batch_size % (groups * layout.micro_batch) == 0 and batch_size // (groups * layout.micro_batch) >= pipeline,
        f"pretrain.batch_size={batch_size} must be a multiple of the {groups} groups of workers x "
        f"micro_batch={layout.micro_batch}, and give each at least pipeline_parallel={pipeline} micro-batches",
    )
