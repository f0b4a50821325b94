"""Tensor and pipeline parallelism through torch: parallelize_module, distributed.pipelining, FSDP2 over what is left.

Ranks form a mesh (pipeline, data, tensor). A pipeline stage holds consecutive blocks. Inside a block every matrix is
split over the tensor ranks by heads or by MLP columns, and between matrices the sequence is split, norms included
(Megatron-LM, arXiv:1909.08053, and its sequence parallelism, arXiv:2205.05198). The vocabulary is split too: no rank
holds whole logits. Over the data ranks FSDP2 shards fp32 weights and moments, as ZeRO 3 does. The schedule is 1F1B
(arXiv:2104.04473); left to itself a micro-batch is one sequence: the least memory and the smallest bubble.
The optimiser is AdamW: no rank holds a whole matrix that Muon could orthogonalise.
Shapes: B batch, T time, S = T / tensor_parallel, D hidden.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle
from torch.utils.checkpoint import checkpoint

from llm.config import Base
from llm.data.loader import IGNORE, Batch
from llm.model.config import ModelConfig
from llm.model.transformer import Attention, Block, Transformer, rope_tables
from llm.train.local import TrainConfig
from llm.train.loss import CHUNK, count_targets
from llm.train.optimiser import NonFiniteError, is_hidden_matrix
from llm.train.parts import open_parts, save_parts

MOMENTS = ("exp_avg", "exp_avg_sq")
NAMES = ("pipeline", "data", "tensor")


class Stage(nn.Module):
    """Consecutive blocks of a Transformer under its names; the first has the embedding, the last norm and head."""

    def __init__(self, model: Transformer, stage: int, num_stages: int, tensor_parallel: int):
        super().__init__()
        layers = model.config.num_layers // num_stages
        self.config, self.tensor_parallel = model.config, tensor_parallel
        self.embedding = model.embedding if stage == 0 else None
        self.blocks = nn.ModuleDict({str(i): model.blocks[i] for i in range(stage * layers, (stage + 1) * layers)})
        last = stage == num_stages - 1
        self.norm = model.norm if last else None
        self.head = model.head if last else None

    def forward(self, x: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Return hidden_BSD of tokens_BT (first stage) or hidden_BSD; segments_BT as in Batch."""
        length = x.shape[1] if self.embedding is not None else x.shape[1] * self.tensor_parallel
        if self.embedding is not None:
            x = self.embedding(x)
        cos, sin = (table[None, None, :length] for table in rope_tables(self.config, x.dtype, x.device))
        mask = None
        if segments_BT is not None:
            mask = (segments_BT[:, None, :, None] == segments_BT[:, None, None, :]).tril()
        for block in self.blocks.values():
            x = block(x, (cos, sin), mask, None, 0)
        return x if self.norm is None else self.norm(x)

    def unembedding(self) -> Tensor:
        """Return the matrix that turns hidden states into logits."""
        head = self.embedding if self.head is None else self.head
        assert head is not None, "only the last stage has logits"
        return head.weight


def make_mesh(device: str, tensor_parallel: int, pipeline_parallel: int) -> DeviceMesh:
    """Return the mesh of all ranks; tensor ranks are neighbours, for they talk most."""
    replicas = torch.distributed.get_world_size() // (tensor_parallel * pipeline_parallel)
    return init_device_mesh(device, (pipeline_parallel, replicas, tensor_parallel), mesh_dim_names=NAMES)


def make_stage(shape: ModelConfig, mesh: DeviceMesh, dtype: torch.dtype) -> Stage:
    """Return this rank's sharded stage on the meta device."""
    with torch.device("meta"):
        model = Transformer(shape)
    tensor = mesh["tensor"]
    stage = Stage(model, mesh.get_local_rank("pipeline"), mesh["pipeline"].size(), tensor.size())
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in stage.blocks.values():
        split_block(block, tensor)  # type: ignore[arg-type]
        fully_shard(block, mesh=mesh["data"], mp_policy=policy, reshard_after_forward=False)
    if stage.embedding is not None:
        rows = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        parallelize_module(stage.embedding, tensor, rows)
    if stage.norm is not None:
        parallelize_module(stage.norm, tensor, SequenceParallel(use_local_output=True))
    if stage.head is not None:
        parallelize_module(stage.head, tensor, ColwiseParallel())
    fully_shard(stage, mesh=mesh["data"], mp_policy=policy, reshard_after_forward=False)
    return stage


def split_block(block: Block, tensor: DeviceMesh) -> None:
    """Split a block's matrices; its fused ones must have their rows in the order of `split_rows`."""
    gather = partial(PrepareModuleInput, use_local_output=True)
    others = (None,) * 4  # rope, mask, cache, layer
    plan: dict[str, ParallelStyle] = {
        "attention_norm": SequenceParallel(use_local_output=True),
        "attention": gather(input_layouts=(Shard(1), *others), desired_input_layouts=(Replicate(), *others)),
        "attention.qkv": ColwiseParallel(),
        "attention.query_norm": SequenceParallel(sequence_dim=1, use_local_output=True),  # heads are split
        "attention.key_norm": SequenceParallel(sequence_dim=1, use_local_output=True),
        "attention.out": RowwiseParallel(output_layouts=Shard(1)),
        "mlp_norm": SequenceParallel(use_local_output=True),
        "mlp": gather(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "mlp.gate_up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }
    attention: Attention = block.attention
    attention.sizes = [size // tensor.size() for size in attention.sizes]
    parallelize_module(block, tensor, plan)


def fused_sizes(shape: ModelConfig, name: str) -> list[int]:
    """Return the rows of each part of a fused matrix; of any other one, all as one part."""
    if name.endswith("attention.qkv.weight"):
        return [heads * shape.head_size for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)]
    return [shape.mlp_size, shape.mlp_size] if name.endswith("mlp.gate_up.weight") else []


def split_rows(whole: Tensor, sizes: list[int], ranks: int) -> Tensor:
    """Reorder a fused matrix so that its r-th of `ranks` equal slices holds the r-th slice of each part."""
    parts = [part.chunk(ranks) for part in whole.split(sizes)] if sizes else []
    return torch.cat([part[rank] for rank in range(ranks) for part in parts]) if parts else whole


def join_rows(split: Tensor, sizes: list[int], ranks: int) -> Tensor:
    """Undo `split_rows`."""
    slices = split.split([size // ranks for _ in range(ranks) for size in sizes]) if sizes else ()
    return torch.cat([one for i in range(len(sizes)) for one in slices[i :: len(sizes)]]) if slices else split


class ParallelEngine:
    """One rank's share of a step; every rank is given the global batch. `initial` returns a weight by name."""

    def __init__(
        self,
        shape: ModelConfig,
        initial: Callable[[str], Tensor],
        config: TrainConfig,
        base: Base,
        tensor_parallel: int,
        pipeline_parallel: int,
    ):
        self.config, self.shape = config, shape
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        self.mesh = make_mesh(device.type, tensor_parallel, pipeline_parallel)
        self.stage = make_stage(shape, self.mesh, base.torch_dtype).to_empty(device=device)
        if config.checkpoint_activations:
            for block in self.stage.blocks.values():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.named = dict(self.stage.named_parameters())
        for name, parameter in self.named.items():
            self._fill(name, parameter, initial(name))
        hidden = {name: is_hidden_matrix(name, parameter) for name, parameter in self.named.items()}
        groups = [
            {
                "params": [p for name, p in self.named.items() if hidden[name] is one],
                "weight_decay": config.weight_decay if one else 0.0,
            }
            for one in (True, False)
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        self.passes = config.batch_size // self.mesh["data"].size() // (config.micro_batch or 1)
        group, place = self.mesh["pipeline"].get_group(), self.mesh.get_local_rank("pipeline")
        piped = PipelineStage(self.stage, place, pipeline_parallel, device, group=group)
        self.schedule = Schedule1F1B(piped, self.passes, loss_fn=self._loss)
        self.device, self.zero = device, torch.zeros((), device=device)

    def step(self, batch: Batch, lr_scale: float) -> dict[str, Tensor | float]:
        replica, replicas = self.mesh.get_local_rank("data"), self.mesh["data"].size()
        mine = Batch(*(None if part is None else part[replica::replicas] for part in batch.to(self.device)))  # type: ignore[arg-type]
        # The schedule averages over micro-batches and FSDP over replicas; the loss is the mean over learned tokens.
        self.scale = self.passes * replicas / count_targets(batch.targets)
        losses: list[Tensor] = []
        tokens = (mine.tokens,) if self.stage.embedding is not None else ()
        targets = mine.targets if self.stage.norm is not None else None
        segments: dict[str, Any] = {} if mine.segments is None else {"segments_BT": mine.segments}
        with loss_parallel():
            self.schedule.step(*tokens, target=targets, losses=losses, return_outputs=False, **segments)
        value = self._sum(torch.stack(losses).mean().detach() if losses else self.zero, "pipeline", "data") / replicas
        parameters = list(self.named.values())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        assert isinstance(norm, DTensor)
        total = self._sum(norm.full_tensor() ** 2, "pipeline") ** 0.5
        if not math.isfinite(value + total):
            raise NonFiniteError(
                f"the loss is {value}, the gradient {total}: lower lr, or use base.dtype: fp32. "
                "The last checkpoint is kept"
            )
        nn.utils.clip_grads_with_norm_(parameters, self.config.clip, self.zero + total)
        for group, peak in zip(self.adamw.param_groups, (self.config.lr, self.config.embedding_lr), strict=True):
            group["lr"] = peak * lr_scale
        self.adamw.step()
        self.adamw.zero_grad()
        return {"loss": value, "grad": total}

    def save(self, folder: Path, step: int, extra: dict[str, Any], keep: int) -> None:
        mine = {}
        place = self.mesh.get_local_rank("data") * self.mesh["tensor"].size() + self.mesh.get_local_rank("tensor")
        for i, (name, parameter) in enumerate(self.named.items()):
            for kind in ("master", *MOMENTS):
                whole = self._whole(name, parameter if kind == "master" else self.adamw.state[parameter][kind])
                if i % (self.mesh["data"].size() * self.mesh["tensor"].size()) == place:
                    mine[f"{kind}/{name}"] = whole
        save_parts(folder, step, mine, extra, keep)

    def agree(self, wish: bool) -> bool:
        return self._sum(self.zero + wish, *NAMES) > 0

    def load(self, folder: Path, fits: Callable[[int, dict[str, Any]], bool]) -> tuple[int, dict[str, Any]] | None:
        if (parts := open_parts(folder, fits)) is None:
            return None
        for name, parameter in self.named.items():
            self._fill(name, parameter, parts.tensor(f"master/{name}"))
            self.adamw.state[parameter] = {"step": torch.tensor(float(parts.step))}
            for kind in MOMENTS:
                moment = self.adamw.state[parameter][kind] = torch.zeros_like(parameter)
                self._fill(name, moment, parts.tensor(f"{kind}/{name}"))
        return parts.step, parts.extra

    def _loss(self, hidden_BSD: Tensor, targets_BT: Tensor) -> Tensor:
        """Return a micro-batch's summed loss times `scale`, in chunks whose logits are computed again for gradients."""
        ranks = self.mesh["tensor"].size()
        targets_BRS = targets_BT.unflatten(1, (ranks, -1))
        total = self.zero
        for start in range(0, hidden_BSD.shape[1], max(1, CHUNK // ranks)):
            chunk = slice(start, start + max(1, CHUNK // ranks))
            targets = targets_BRS[:, :, chunk].flatten()
            total = total + checkpoint(self._chunk_loss, hidden_BSD[:, chunk], targets, use_reentrant=False)
        return total * self.scale

    def _chunk_loss(self, hidden_BSD: Tensor, targets: Tensor) -> Tensor:
        split = DTensor.from_local(hidden_BSD, self.mesh["tensor"], [Shard(1)])
        logits = F.linear(split.redistribute(placements=[Replicate()]), self.stage.unembedding()).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum")
        return loss.to_local()  # type: ignore[attr-defined, no-any-return]

    def _sum(self, value: Tensor, *dims: str) -> float:
        """Return the sum over the ranks along dimensions of the mesh."""
        summed: Any = DTensor.from_local(value, self.mesh[dims], [Partial()] * len(dims))
        return float(summed.full_tensor())

    @torch.no_grad()
    def _fill(self, name: str, target: Tensor, whole: Tensor) -> None:
        assert isinstance(target, DTensor)
        ordered = split_rows(whole.to(self.mesh.device_type), fused_sizes(self.shape, name), self.mesh["tensor"].size())
        target.copy_(distribute_tensor(ordered, target.device_mesh, target.placements, src_data_rank=None))

    def _whole(self, name: str, shard: Tensor) -> Tensor:
        assert isinstance(shard, DTensor)
        whole: Tensor = shard.full_tensor().detach().cpu()
        return join_rows(whole, fused_sizes(self.shape, name), self.mesh["tensor"].size())
