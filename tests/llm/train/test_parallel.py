"""Tensor, pipeline and data parallelism on gloo ranks: the loss curve of one process, shards of the predicted size."""

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from llm.model.presets import PRESETS
from llm.train.loop import train
from llm.train.memory import bytes_per_rank_sharded, count_local
from llm.train.parallel import ParallelEngine, fused_sizes, join_rows, make_mesh, make_stage, split_rows
from llm.train.parts import keep_only_parts
from tests.llm.train.ranks import (
    BASE,
    CONFIG,
    SHAPE,
    TOLERANCE,
    UNTIED,
    local_curve,
    make_loader,
    make_model,
    run_ranks,
)

STOPPED_AT = 4  # the last step before the rate falls, whose checkpoint is kept


def test_rows_of_fused_matrices_by_hand():
    """Two ranks; queries 0-3, keys 4-5, values 6-7: each rank has half of each, and joining undoes it."""
    rows = torch.arange(8)
    assert split_rows(rows, [4, 2, 2], 2).tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    assert join_rows(split_rows(rows, [4, 2, 2], 2), [4, 2, 2], 2).tolist() == rows.tolist()
    assert split_rows(rows, [], 2) is rows
    grouped = SHAPE.model_copy(update={"num_kv_heads": 2})
    assert fused_sizes(grouped, "blocks.0.attention.qkv.weight") == [64, 32, 32]


def train_on_rank(shape, tensor_parallel, pipeline_parallel, scratch):
    """Return this rank's curve and what it holds: [place in the pipeline, masters, moments] in bytes."""
    weights = make_model(shape).state_dict()
    engine = ParallelEngine(shape, weights.__getitem__, CONFIG, BASE, tensor_parallel, pipeline_parallel)
    trained = train(engine, make_loader().batch, CONFIG, BASE, scratch)
    masters = [parameter.to_local() for parameter in engine.named.values()]
    moments = [
        engine.adamw.state[p][kind].to_local() for p in engine.named.values() for kind in ("exp_avg", "exp_avg_sq")
    ]
    sizes = [sum(tensor.untyped_storage().nbytes() for tensor in one) for one in (masters, moments)]
    return [point["loss"] for point in trained.trace], [engine.mesh.get_local_rank("pipeline"), *sizes]


def check_ranks(results, curve, shape, tensor_parallel, pipeline_parallel, replicas=1):
    for ours, (stage, masters, moments) in results:
        assert ours == pytest.approx(curve, abs=TOLERANCE)
        expected = bytes_per_rank_sharded(
            count_local(shape, tensor_parallel, pipeline_parallel, stage), replicas, BASE.dtype
        )
        assert masters == pytest.approx(expected.masters, rel=0.05)
        assert moments == pytest.approx(expected.moments, rel=0.05)


def break_scaling(shape):
    """Negative control: queries, keys and values in their usual order give a rank the heads of another."""
    from llm.train import parallel

    parallel.split_rows = lambda whole, sizes, ranks: whole
    return train_on_rank(shape, 2, 1, None)


@pytest.mark.slow
def test_two_tensor_parallel_ranks_follow_one_process(tmp_path, torch_extensions):
    grouped = SHAPE.model_copy(update={"num_kv_heads": 2})
    check_ranks(run_ranks(train_on_rank, 2, tmp_path, grouped, 2, 1, None), local_curve(grouped), grouped, 2, 1)


@pytest.mark.slow
def test_rows_in_their_usual_order_leave_the_band(tmp_path, torch_extensions):
    (ours, _), _ = run_ranks(break_scaling, 2, tmp_path, SHAPE)
    differences = [abs(a - b) for a, b in zip(ours, local_curve(SHAPE), strict=True)]
    assert max(differences) > 100 * TOLERANCE


@pytest.mark.slow
def test_two_pipeline_stages_resume_as_four_ranks_of_another_layout(tmp_path, torch_extensions):
    """Two stages follow one process; their checkpoint is continued by two tensor times two data-parallel ranks."""
    scratch, curve = tmp_path / "scratch", local_curve(UNTIED)
    check_ranks(run_ranks(train_on_rank, 2, tmp_path, UNTIED, 1, 2, scratch), curve, UNTIED, 1, 2)
    keep_only_parts(scratch, STOPPED_AT)
    check_ranks(run_ranks(train_on_rank, 4, tmp_path, UNTIED, 2, 1, scratch), curve, UNTIED, 2, 1, replicas=2)


@pytest.mark.slow
def test_tensor_and_pipeline_together(tmp_path, torch_extensions):
    curve = local_curve(UNTIED)
    check_ranks(run_ranks(train_on_rank, 4, tmp_path, UNTIED, 2, 2, None), curve, UNTIED, 2, 2)


@pytest.mark.parametrize("name, workers, tensor_parallel, pipeline_parallel", [("7b", 16, 8, 1), ("30b", 64, 8, 4)])
def test_large_presets_shard_as_predicted(name, workers, tensor_parallel, pipeline_parallel):
    """The first and the last rank of a whole cluster, on the meta device, with no other rank there."""
    for rank in (0, workers - 1):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=workers)
        try:
            mesh = make_mesh("cpu", tensor_parallel, pipeline_parallel)
            stage = make_stage(PRESETS[name], mesh, torch.bfloat16)
            held = 4 * sum(parameter.to_local().numel() for parameter in stage.parameters())
        finally:
            torch.distributed.destroy_process_group()
        place = 0 if rank == 0 else pipeline_parallel - 1
        local = count_local(PRESETS[name], tensor_parallel, pipeline_parallel, place)
        expected = bytes_per_rank_sharded(local, workers // (tensor_parallel * pipeline_parallel), "bf16")
        assert held == pytest.approx(expected.masters, rel=0.05)
