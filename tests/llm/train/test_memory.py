"""Predicted bytes per rank: by hand here, against tensors of real engines in the tests of those engines."""

import pytest
import torch

from llm.config import ConfigError
from llm.model.presets import PRESETS
from llm.model.transformer import Transformer
from llm.train.memory import bytes_per_rank, count_local, count_vectors


def test_zero_paper_example():
    """Figure 1 of arXiv:1910.02054: 7.5B parameters on 64 ranks take 120, 31.4, 16.6 and 1.9 GB."""
    unpartitioned = bytes_per_rank(7_500_000_000, 1, 1, "bf16").total
    assert unpartitioned / 1e9 == pytest.approx(120)
    for stage, gigabytes in ((1, 31.4), (2, 16.6), (3, 1.9)):
        assert bytes_per_rank(7_500_000_000, 64, stage, "bf16").total / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("name", list(PRESETS))
def test_one_rank_holds_every_parameter(name):
    with torch.device("meta"):
        model = Transformer(PRESETS[name])
    assert count_local(PRESETS[name], 1, 1, 0) == sum(p.numel() for p in model.parameters())
    assert count_vectors(PRESETS[name]) == sum(p.numel() for p in model.parameters() if p.ndim == 1)


def test_shards_add_up_to_the_model():
    shape = PRESETS["30b"]
    copies = 7 * (count_vectors(shape))  # eight tensor-parallel ranks each hold every norm
    total = sum(8 * count_local(shape, 8, 4, stage) for stage in range(4))
    assert total - copies == count_local(shape, 1, 1, 0)


def test_layers_must_divide():
    with pytest.raises(ConfigError, match="pipeline_parallel=3 must divide num_layers=32"):
        count_local(PRESETS["7b"], 1, 3, 0)
