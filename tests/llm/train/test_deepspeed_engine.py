"""ZeRO 1, 2, 3 on two gloo ranks: the loss curve of one process, shards of the predicted size, resume on 1 and 4."""

import shutil

import pytest

from llm.config import Base
from llm.data.loader import Batch
from llm.train.loop import train
from llm.train.memory import bytes_per_rank, count_vectors
from llm.train.parts import keep_only_parts
from tests.llm.train.ranks import CONFIG, SHAPE, TOLERANCE, local_curve, make_loader, make_model, run_ranks

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed builds its communication op with g++"),
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the first run builds that op
]


STOPPED_AT = 4  # the last step before the rate falls, whose checkpoint is kept
RUNS = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 0), ("bf16", 3)]


def size_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def train_on_rank(stage, dtype, scratch):
    """Return this rank's curve and what it holds: [parameters, masters, moments] in bytes."""
    from llm.train.deepspeed_engine import DeepSpeedEngine

    base = Base(dtype=dtype, threads=1)
    model = make_model(SHAPE)
    engine = DeepSpeedEngine(SHAPE, model.state_dict().__getitem__, CONFIG, base, stage)
    trained = train(engine, make_loader().batch, CONFIG, base, scratch)
    whole = [parameter.data for parameter in engine.model.parameters()]
    shards = [parameter.ds_tensor for parameter in engine.model.parameters() if hasattr(parameter, "ds_tensor")]
    weights = [
        tensor
        for parameter, tensor in zip(engine.model.parameters(), shards or whole, strict=True)
        if not getattr(parameter, "ds_persist", False)
    ] + [parameter.data for parameter in engine.model.parameters() if getattr(parameter, "ds_persist", False)]
    masters = [] if engine.own_masters and dtype == "fp32" else engine.flat_masters()
    return [point["loss"] for point in trained.trace], [size_bytes(one) for one in (weights, masters, engine.moments())]


def train_all(two, one):
    """Train every run from the start, leaving a checkpoint of two ranks; then resume the one of one rank."""
    curves = [train_on_rank(stage, dtype, two if (dtype, stage) == ("fp32", 2) else None) for dtype, stage in RUNS]
    return [*curves, train_on_rank(2, "fp32", one)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, torch_extensions):
    folder = tmp_path_factory.mktemp("ranks")
    one, two = folder / "one", folder / "two"
    run_ranks(train_on_rank, 1, folder, 1, "fp32", one)
    keep_only_parts(one, STOPPED_AT)
    results = run_ranks(train_all, 2, folder, two, one)
    keep_only_parts(two, STOPPED_AT)
    fewer = run_ranks(train_on_rank, 1, folder, 3, "fp32", two)
    each = {name: [rank[i] for rank in results] for i, name in enumerate(RUNS)}
    return each | {"one to two": [rank[-1] for rank in results], "two to one": fewer}


@pytest.fixture(scope="module")
def curve():
    return local_curve()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_follow_one_process(runs, curve, stage):
    for ours, _ in runs["fp32", stage]:
        assert ours == pytest.approx(curve, abs=TOLERANCE)


def test_the_band_is_narrow(curve):
    """Negative control: steps on one rank's rows alone, as without a reduction of gradients, leave the band."""
    loader = make_loader()
    alone = local_curve(batch_of=lambda step: Batch(*(part[::2] for part in loader.batch(step)[:2])))
    assert curve[-1] < curve[0] - 0.1
    assert max(abs(a - b) for a, b in zip(alone[1:], curve[1:], strict=True)) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype, stage", RUNS)
def test_bytes_per_rank_are_predicted(runs, dtype, stage):
    num_params = sum(p.numel() for p in make_model(SHAPE).parameters())
    expected = bytes_per_rank(num_params, 2, stage, dtype, count_vectors(SHAPE))
    for _, (parameters, masters, moments) in runs[dtype, stage]:
        assert parameters == pytest.approx(expected.parameters, rel=0.05)
        assert masters == pytest.approx(expected.masters, rel=0.05)
        assert moments == pytest.approx(expected.moments, rel=0.05)


@pytest.mark.parametrize("change", ["one to two", "two to one"])
def test_resumes_on_another_number_of_ranks(runs, curve, change):
    """Saved at step 4 by one rank under ZeRO 1 for two under ZeRO 2, and by two under ZeRO 2 for one under ZeRO 3."""
    for ours, _ in runs[change]:
        assert ours == pytest.approx(curve, abs=TOLERANCE)
