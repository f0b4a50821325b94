"""Rounding in order: each matrix takes up what rounding those before it did to its inputs.

`compensate` keeps W x close on the inputs x of the original, but behind rounded matrices W meets other inputs y.
So it is first refitted to them, and the refitted matrix is rounded with the moments of y. Blocks go in order.
Shapes: I inputs of a matrix, N windows, B of them at a time, T tokens, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.folder import list_parts
from llm.model.transformer import Block, Transformer, attend, rope_tables
from llm.progress import track
from llm.quant.blocks import Kind, Packed, unpack
from llm.quant.calibration import BATCH
from llm.quant.compensate import compensate

PROJECTIONS = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")  # as `walk_block` meets them


@torch.inference_mode()
def round_in_order(
    model: Transformer, windows_NT: Tensor, embedding: Packed, kinds: Mapping[str, Kind], damping: float
) -> dict[str, Packed]:
    """Return the rounded matrices of all blocks, by Hugging Face name.

    Args:    windows_NT: token ids of training text; what both models make of them is held at once.
             embedding: as the file will hold it.  kinds: of each matrix.
             damping: share of the mean moment, for `refit` and `compensate`.
    """
    assert windows_NT.numel() > 0, "calibration needs at least one window"
    batches = windows_NT.split(BATCH)
    rows_VD = torch.from_numpy(unpack(embedding))
    x, y = [model.embedding(batch) for batch in batches], [F.embedding(batch, rows_VD) for batch in batches]
    cos_TK, sin_TK = rope_tables(model.config, rows_VD.dtype, rows_VD.device)
    rope = cos_TK[: windows_NT.shape[1]], sin_TK[: windows_NT.shape[1]]  # the same for all rows and heads
    packed: dict[str, Packed] = {}
    for layer, block in enumerate(track(list(model.blocks), "blocks rounded in order")):
        assert isinstance(block, Block)
        rounded = copy.deepcopy(block)
        original_walks = [walk_block(block, x_BTD, rope) for x_BTD in x]
        rounded_walks = [walk_block(rounded, y_BTD, rope) for y_BTD in y]
        for projection in PROJECTIONS:
            cross_II, moment_II = pair_moments(original_walks, rounded_walks)
            linear = rounded.get_submodule(projection)
            assert isinstance(linear, nn.Linear)
            sizes = list_parts(projection, model.config)
            names = [f"model.layers.{layer}.{part}.weight" for part in sizes]
            wanted = refit(linear.weight, cross_II, moment_II, damping).split(list(sizes.values()))
            for name, part_OI in zip(names, wanted, strict=True):
                packed[name] = compensate(kinds[name], part_OI.numpy(), moment_II, damping)
            linear.weight.copy_(torch.cat([torch.from_numpy(unpack(packed[name])) for name in names]))
        x, y = [next(walk) for walk in original_walks], [next(walk) for walk in rounded_walks]
    return packed


def walk_block(block: Block, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
    """Yield the inputs of the block's four projections, each before it is used, and then the block's output.

    So a projection may be replaced while its inputs are looked at, and the next inputs come from the new one.
    """
    attention, mlp = block.attention, block.mlp
    normed_BTD = block.attention_norm(x_BTD)
    yield normed_BTD
    mixed = attend(*attention.project(normed_BTD, rope), None).transpose(1, 2).flatten(2)
    yield mixed
    x_BTD = x_BTD + attention.out(mixed)
    normed_BTD = block.mlp_norm(x_BTD)
    yield normed_BTD
    gate, up = mlp.gate_up(normed_BTD).chunk(2, dim=-1)
    gated = F.silu(gate) * up
    yield gated
    yield x_BTD + mlp.down(gated)


def pair_moments(originals: Sequence[Iterator[Tensor]], roundeds: Sequence[Iterator[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return E[x y^T] and E[y y^T], fp64 [I, I], of the next inputs x of the original and y of the rounded model."""
    cross_II = moment_II = torch.zeros(())
    count = 0
    for original, rounded in zip(originals, roundeds, strict=True):
        x_NI, y_NI = (next(walk).flatten(0, 1) for walk in (original, rounded))
        cross_II = cross_II + (x_NI.T @ y_NI).double()
        moment_II = moment_II + (y_NI.T @ y_NI).double()
        count += len(x_NI)
    return cross_II / count, moment_II / count


def refit(weight_OI: Tensor, cross_II: Tensor, moment_II: Tensor, damping: float) -> Tensor:
    """Return the matrix whose outputs on y come closest to the original's on x, fp32.

    argmin over V of  E|V y - W x|^2 + r |V - W|^2  =  W (E[x y^T] + r I) (E[y y^T] + r I)^-1,
    r = damping * mean(diag E[y y^T]);  W itself where y = x.

    Args:    weight_OI: W.  cross_II, moment_II: E[x y^T] and E[y y^T], fp64.  damping: > 0.
    Source:  the asymmetric calibration of GPTAQ, arXiv:2504.02692. Differs: least squares once before the columns
             are rounded, with a ridge towards W, not a term of each column's update.
    """
    ridge_II = (damping * moment_II.diagonal().mean() + 1e-12) * torch.eye(len(moment_II), dtype=moment_II.dtype)
    # V M = W C with a symmetric M is M V^T = (W C)^T.
    wanted_IO = (weight_OI.double() @ (cross_II + ridge_II)).T
    return torch.cholesky_solve(wanted_IO, torch.linalg.cholesky(moment_II + ridge_II)).T.float().contiguous()
