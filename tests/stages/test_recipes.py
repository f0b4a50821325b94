"""Recipes for GPUs: their sections fit together, the planner finds that they fit, and their models can be built."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from llm.data.sources.hosted import is_hosted
from llm.model.presets import PRESETS
from llm.model.transformer import Transformer
from llm.train.footprint import Job
from llm.train.hardware import DEVICES
from llm.train.layout import Layout
from llm.train.plan import choose_layout, plan_layout
from stages import evaluate, ingest, pretrain, rlhf, sft, tokenize
from stages.plumbing import recipe
from stages.plumbing.stage import parse_params

ROOT = Path(__file__).parents[2]
RECIPES = {"gpu-124m": "small", "gpu-1b": "1b", "cluster-7b": "7b", "cluster-30b": "30b"}


def read(name):
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    return text, yaml.safe_load(text)


def plan_recipe(name):
    """Return the plan of the recipe's own layout on the GPUs that its header names."""
    text, tree = read(name)
    gpus, gpu = re.search(r"on (\d+) x ([\w-]+)", text.splitlines()[0]).groups()
    params = parse_params("pretrain", pretrain.Params, tree)
    assert params.workers == int(gpus)
    shape = params.shape(tree["tokenize"]["vocab_size"])
    job = Job(shape, params.context, params.batch_size, params.steps * params.batch_size * params.context)
    job = job._replace(optimiser=params.optimiser)
    sharing = (params.workers, params.zero_stage, params.tensor_parallel, params.pipeline_parallel)
    return plan_layout(job, Layout(*sharing, params.micro_batch, params.checkpoint_activations), DEVICES[gpu]), text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_becomes_params_and_passes_every_check(name, tmp_path, monkeypatch):
    for file in ("dvc.yaml", "requirements.lock"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    for folder in ("recipes", "data/smalltalk"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    recipe.write_params(name, None)
    recipe.check_params()


@pytest.mark.parametrize("name", RECIPES)
def test_sections_fit_together(name):
    _, tree = read(name)
    params = parse_params("pretrain", pretrain.Params, tree)
    vocabulary = parse_params("tokenize", tokenize.Params, tree).vocab_size
    assert params.shape(vocabulary) == PRESETS[RECIPES[name]]
    assert parse_params("evaluate", evaluate.Params, tree).window == params.context
    assert parse_params("sft", sft.Params, tree).max_len_tokens <= params.max_context
    limits = parse_params("rlhf", rlhf.Params, tree)
    assert limits.max_prompt_tokens + limits.max_new_tokens <= params.max_context
    source = parse_params("ingest", ingest.Params, tree).sources["fineweb-edu"]
    assert is_hosted(source.path)
    # at least 4 bytes of text a token of this budget are read (FineWeb-Edu: about 4.4)
    tokens = params.steps * params.batch_size * params.context
    assert parse_params("ingest", ingest.Params, tree).max_hosted_bytes > 4.2 * tokens


@pytest.mark.parametrize("name", RECIPES)
def test_the_layout_fits_on_the_gpus_of_the_header_and_is_about_the_fastest(name):
    plan, text = plan_recipe(name)
    assert plan.fits
    best = choose_layout(plan.job, plan.layout.workers, plan.device)
    assert plan.time.total <= 1.05 * best.time.total
    size, seconds, days = re.search(r"Plan: (\d+) GB.*?, ([\d.]+) s a step, ([\d.]+) days", text).groups()
    assert plan.footprint.total / 1e9 == pytest.approx(float(size), rel=0.05)
    assert plan.time.total == pytest.approx(float(seconds), rel=0.05)
    assert plan.days == pytest.approx(float(days), rel=0.05)
    # negative control: without what its layout shares, on a GPU of a quarter of the memory, it does not fit
    small = plan.device._replace(memory=plan.device.memory / 4)
    assert not plan_layout(plan.job, plan.layout, small).fits


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_is_built_on_the_meta_device(name):
    _, tree = read(name)
    shape = parse_params("pretrain", pretrain.Params, tree).shape(tree["tokenize"]["vocab_size"])
    with torch.device("meta"):
        model = Transformer(shape)
        logits = model.unembed(model(torch.zeros(1, 8, dtype=torch.int64)))
    assert logits.shape == (1, 8, shape.vocab_size)


@pytest.mark.parametrize("name", RECIPES)
def test_the_comment_names_the_optimiser_that_runs(name):
    text, tree = read(name)
    comment = next(line for line in text.splitlines() if line.startswith("# Optimiser: "))
    runs = parse_params("pretrain", pretrain.Params, tree).optimiser
    assert comment.startswith(
        {"muon": "# Optimiser: Muon for the hidden", "adamw": "# Optimiser: AdamW for everything"}[runs]
    )
