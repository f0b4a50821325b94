"""Presets hold what their names say, counted on the meta device."""

import pytest
import torch

from llm.model.presets import PRESETS
from llm.model.transformer import Transformer

NAMED = {"nano": 0.5e6, "mini": 4.26e6, "small": 124e6, "1b": 1e9, "7b": 7e9, "30b": 30e9}


def count_parameters(shape):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(shape).parameters())


@pytest.mark.parametrize("name", NAMED)
def test_counts_are_the_names(name):
    count = count_parameters(PRESETS[name])
    assert count == pytest.approx(NAMED[name], rel=0.03)
    # negative control: a fifth more layers is another model
    longer = PRESETS[name].model_copy(update={"num_layers": PRESETS[name].num_layers * 6 // 5 + 1})
    assert count_parameters(longer) != pytest.approx(NAMED[name], rel=0.03)


def test_every_preset_is_named_here():
    assert list(PRESETS) == list(NAMED)
