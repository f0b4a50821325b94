"""Tensor, pipeline and data parallelism on gloo ranks: the loss curve of one process, shards of the predicted size."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.testing._internal.distributed.fake_pg import FakeStore

from llm.model.presets import PRESETS
from llm.train.layout import Layout, check_layout
from llm.train.loop import train
from llm.train.memory import bytes_per_rank_sharded, count_local
from llm.train.parallel import ParallelEngine, fused_sizes, join_rows, make_mesh, make_stage, split_rows
from llm.train.parts import keep_only_parts
from stages import pretrain
from stages.plumbing.stage import parse_params
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


def train_with_and_without_order(shape):
    """Train as it should be; then with rows in their usual order, where a rank has the heads of another."""
    from llm.train import parallel

    right = train_on_rank(shape, 2, 1, None)
    parallel.split_rows = lambda whole, sizes, ranks: whole
    return right, train_on_rank(shape, 2, 1, None)


def train_and_resume(shape, scratch):
    """Train with both kinds together; then go on from the checkpoint with two tensor times two data ranks."""
    return train_on_rank(shape, 2, 2, None), train_on_rank(shape, 2, 1, scratch)


@pytest.mark.slow
def test_two_tensor_parallel_ranks_follow_one_process(tmp_path, torch_extensions):
    grouped = SHAPE.model_copy(update={"num_kv_heads": 2})
    curve = local_curve(grouped)
    right, wrong = zip(*run_ranks(train_with_and_without_order, 2, tmp_path, grouped), strict=True)
    check_ranks(right, curve, grouped, 2, 1)
    assert max(abs(a - b) for a, b in zip(wrong[0][0], curve, strict=True)) > 100 * TOLERANCE


@pytest.mark.slow
def test_two_pipeline_stages_follow_one_process_and_resume_as_four_ranks(tmp_path, torch_extensions):
    scratch, curve = tmp_path / "scratch", local_curve(UNTIED)
    check_ranks(run_ranks(train_on_rank, 2, tmp_path, UNTIED, 1, 2, scratch), curve, UNTIED, 1, 2)
    keep_only_parts(scratch, STOPPED_AT)
    together, resumed = zip(*run_ranks(train_and_resume, 4, tmp_path, UNTIED, scratch), strict=True)
    check_ranks(together, curve, UNTIED, 2, 2)
    check_ranks(resumed, curve, UNTIED, 2, 1, replicas=2)


def shard_as_rank(rank, shape, layout):
    """Return the fp32 bytes that one rank of a whole cluster holds, on the meta device, with no other rank there."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.workers)
    try:
        mesh = make_mesh("cpu", layout.tensor_parallel, layout.pipeline_parallel)
        stage = make_stage(shape, mesh, torch.bfloat16)
        return 4 * sum(parameter.to_local().numel() for parameter in stage.parameters())
    finally:
        torch.distributed.destroy_process_group()


def read_recipe(name):
    """Return the shape and the layout of a file of recipes/."""
    tree = yaml.safe_load((Path(__file__).parents[3] / "recipes" / f"{name}.yaml").read_text())
    params = parse_params("pretrain", pretrain.Params, tree)
    sizes = (params.workers, params.zero_stage, params.tensor_parallel, params.pipeline_parallel, params.micro_batch)
    check_layout(params.shape(tree["tokenize"]["vocab_size"]), Layout(*sizes), params.batch_size, params.context)
    return params.shape(tree["tokenize"]["vocab_size"]), Layout(*sizes)


LARGE = [(PRESETS["7b"], Layout(16, 0, 8, 1)), (PRESETS["30b"], Layout(64, 0, 8, 4)), read_recipe("cluster-30b")]


@pytest.mark.parametrize("shape, layout", LARGE, ids=["7b", "30b", "recipe of 30b"])
def test_large_presets_shard_as_predicted(shape, layout):
    """On the first rank and on the last one, which are the fullest."""
    for rank, place in ((0, 0), (layout.workers - 1, layout.pipeline_parallel - 1)):
        local = count_local(shape, layout.tensor_parallel, layout.pipeline_parallel, place)
        expected = bytes_per_rank_sharded(local, layout.ranks, "bf16")
        assert shard_as_rank(rank, shape, layout) == pytest.approx(expected.masters, rel=0.05)
