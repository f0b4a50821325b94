"""Combinations that cannot be split are refused with the key and the remedy."""

import pytest

from llm.config import ConfigError
from llm.model.presets import PRESETS
from llm.train.layout import Layout, check_layout


def test_what_the_large_presets_need_can_be_split():
    check_layout(PRESETS["30b"], Layout(64, 3, 8, 4), 256, 4096)
    check_layout(PRESETS["7b"], Layout(16, 2), 256, 4096)


@pytest.mark.parametrize(
    "layout, name, message",
    [
        (Layout(48, 3, 8, 4), "30b", "workers=48 must be a multiple of tensor_parallel x pipeline_parallel = 32"),
        (Layout(64, 3, 16, 1), "30b", "tensor_parallel=16 must divide num_heads=56"),
        (Layout(64, 3, 1, 8), "30b", "pipeline_parallel=8 must divide num_layers=52"),
        (Layout(8, 3, 1, 4), "1b", "tie_embeddings: false"),
        (Layout(64, 3, 1, 2, micro_batch=8), "7b", "at least pipeline_parallel=2 micro-batches"),
        (Layout(600, 3, 2, 1), "7b", "batch_size=256 must be a multiple of the 300 groups of workers x micro_batch=1"),
    ],
)
def test_what_cannot_be_split_is_refused(layout, name, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(PRESETS[name], layout, 256, 4096)
