"""Pretrain: token shards -> base model, by next-token prediction.

A killed run continues from its last checkpoint and ends in the same bytes. Sizes that params leave out come from the
preset, rates, batch, steps and warm-up from the dial (llm/train/dial.py); the report says what really ran. With
base.init_from training goes on from that model, whose config.json then says the shape; with no steps it passes
through, every weight as it was.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from llm.config import StageParams, require
from llm.data.loader import WindowLoader
from llm.data.shards import Shard, open_shard
from llm.data.tokenizer import Tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import save_model, start_model
from llm.model.presets import PRESETS
from llm.model.transformer import Transformer
from llm.train.dial import turn_dial
from llm.train.local import LocalEngine, TrainConfig
from llm.train.loop import Trained, finish, train
from llm.train.meter import Meter
from llm.train.trace import write_trace
from stages.plumbing.stage import Paths, main

log = logging.getLogger(__name__)
SIZES = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_size", "mlp_size")
SHAPE = (*SIZES, "rope_theta", "tie_embeddings")
LAYOUT = {"workers", "zero_stage", "tensor_parallel", "pipeline_parallel"}
DERIVED = ("lr", "embedding_lr", "batch_size", "steps", "warmup_steps")
MAX_EPOCHS = 4  # so often text can be repeated and teach nearly as much as new text: arXiv:2305.16264


class Params(TrainConfig, StageParams):
    # a longer run goes on from a shorter one's stable phase, and any layout of ranks from that of any other
    RESUMABLE = frozenset({"steps", "decay", "checkpoint_every", "checkpoint_minutes"}) | LAYOUT

    steps: int = Field(ge=0, le=10**8, description="optimiser steps; 0 takes the model of base.init_from as it is")
    preset: Literal["nano", "mini", "small", "1b", "7b", "30b"] | None = Field(
        None, description="a shape of llm/model/presets.py: gives every size, rate, batch and step left out here"
    )
    hidden_size: int = Field(ge=32, multiple_of=32, description="width of the residual stream")
    num_layers: int = Field(ge=1, le=256)
    num_heads: int = Field(ge=1, description="query heads")
    num_kv_heads: int = Field(ge=1, description="key and value heads; must divide num_heads")
    head_size: int = Field(64, ge=8, multiple_of=8, description="size of one head")
    mlp_size: int = Field(ge=32, multiple_of=32, description="inner width of SwiGLU")
    rope_theta: float = Field(10_000.0, gt=1, description="base of the rotary angles; larger for longer contexts")
    tie_embeddings: bool = Field(True, description="the unembedding is the embedding")
    context: int = Field(256, ge=16, le=1 << 20, description="tokens per training sequence")
    max_context: int = Field(
        512, ge=16, le=1 << 20, description="positions that the model may be served with; >= context"
    )
    launcher: Literal["local", "ray"] = Field("local", description="ray: Ray Train and DeepSpeed over `workers`")
    workers: int = Field(1, ge=1, description="processes of the ray launcher, one for each GPU")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="DeepSpeed ZeRO of the ray launcher; with the next two it is FSDP2"
    )
    tensor_parallel: int = Field(1, ge=1, description="ranks that share each matrix; of the ray launcher")
    pipeline_parallel: int = Field(1, ge=1, description="ranks that share the layers; of the ray launcher")
    compile: bool = Field(False, description="torch.compile: about 25 s of start-up; other weights than eager")
    confine_attention: bool = Field(False, description="tokens see their own document only, not the window before it")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Take what was left out from the preset, and then from the dial."""
        given = {key: value for key, value in given.items() if value is not None}
        if (preset := PRESETS.get(str(given.get("preset")))) is not None:
            sizes = {name: getattr(preset, name) for name in (*SHAPE, "context")}
            given = sizes | {"max_context": preset.context} | given
        missing = [name for name in SIZES if name not in given and cls.model_fields[name].is_required()]
        if missing and "preset" not in given:
            raise _problems((name, None, f"missing: give it, or a preset ({', '.join(PRESETS)})") for name in missing)
        defaults = {name: cls.model_fields[name].default for name in ("head_size", "context", "optimiser")}
        given = defaults | given
        sizes = {name: given[name] for name in (*SHAPE, "context") if name in given}
        try:
            shape = ModelConfig(vocab_size=4096, **sizes)  # any vocabulary: the dial does not look at it
            settings = turn_dial(shape, shape.context, given["optimiser"], given.get("batch_size"))
        except (ValueError, TypeError, ArithmeticError):  # a faulty value, of which its own field will tell
            return {"steps": 1, "batch_size": 1} | given
        return {name: getattr(settings, name) for name in DERIVED} | given

    @model_validator(mode="after")
    def _check_mix(self) -> "Params":
        """Report everything that does not go together."""
        problems = list(self._find_problems())
        if problems:
            raise _problems((key, getattr(self, key), message) for key, message in problems)
        return self

    def _find_problems(self) -> Iterator[tuple[str, str]]:
        group = self.tensor_parallel * self.pipeline_parallel
        if self.steps == 0 and self.base.init_from is None:
            yield "steps", "0 leaves random weights: set 1 or more, or start from a model (base.init_from)"
        if self.num_heads % self.num_kv_heads:
            yield "num_kv_heads", f"must divide num_heads={self.num_heads}"
        if self.launcher == "local":
            for key in ("workers", "tensor_parallel", "pipeline_parallel"):
                if getattr(self, key) > 1:
                    yield key, "launcher: local is one process; set launcher: ray, or leave this out"
            return
        if self.optimiser != "adamw":
            yield "optimiser", "under ray DeepSpeed flattens the parameters, which Muon cannot take; set adamw"
        if self.pipeline_parallel > 1 and self.tie_embeddings:
            yield "tie_embeddings", "must be false: a pipeline's embedding is on its first rank, the other on its last"
        for key in ("num_heads", "num_kv_heads", "mlp_size", "context"):
            if getattr(self, key) % self.tensor_parallel:
                yield "tensor_parallel", f"must divide {key}={getattr(self, key)}"
        if self.num_layers % self.pipeline_parallel:
            yield "pipeline_parallel", f"must divide num_layers={self.num_layers}"
        if self.workers % group:
            yield "workers", f"must be a multiple of tensor_parallel x pipeline_parallel = {group}"
        elif self.batch_size % (self.workers // group * (self.micro_batch or 1)):
            ranks, rows = self.workers // group, self.micro_batch or 1
            yield "batch_size", f"must be a multiple of the {ranks} ranks that share it x micro_batch={rows}"

    def shape(self, vocab_size: int) -> ModelConfig:
        """Return the model's shape for a tokenizer of `vocab_size`."""
        sizes = {name: getattr(self, name) for name in SHAPE}
        return ModelConfig(vocab_size=vocab_size, context=max(self.context, self.max_context), **sizes)


def _problems(found: Iterable[tuple[str, Any, str]]) -> ValidationError:
    """Return one error that holds every (key, value, what is wrong and how to mend it)."""
    lines = [
        InitErrorDetails(type=PydanticCustomError("impossible_mix", "{text}", {"text": text}), loc=(key,), input=value)
        for key, value, text in found
    ]
    return ValidationError.from_exception_data("Params", lines)


def run(params: Params, paths: Paths) -> dict[str, Any]:
    tokenizer = Tokenizer.load(paths.deps["models/tokenizer"])
    shard = open_shard(paths.deps["data/tokens"], "train")
    model = start_model(params.shape(tokenizer.vocab_size), params.base)
    rows, positions = model.config.vocab_size, model.config.context
    require(
        rows >= tokenizer.vocab_size,
        f"base.init_from: the model has {rows} embeddings for {tokenizer.vocab_size} tokens: "
        f"resize them with transformers' resize_token_embeddings",
    )
    require(
        params.steps == 0 or params.context <= positions,
        f"pretrain.context={params.context}: the model of base.init_from has {positions} positions; lower it",
    )
    seen = params.steps * params.batch_size * params.context
    epochs = round(seen / len(shard.tokens), 3)
    if epochs > MAX_EPOCHS:
        log.warning("%.0f passes over the text; past %d they teach little: add text or lower steps", epochs, MAX_EPOCHS)
    trained = train_model(model, shard, params, paths) if params.steps else Trained([], {})
    save_model(model, paths.outs["models/base"])
    tokenizer.save(paths.outs["models/base"])
    write_trace(paths.outs["models/base"], trained.trace)
    paths.cost.update(trained.cost)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": model.config.model_dump(),
        "optimiser": params.optimiser,
        **{name: getattr(params, name) for name in (*DERIVED, "context")},
        "tokens_seen": seen,
        "epochs": epochs,
        "final_loss": trained.trace[-1]["loss"] if trained.trace else None,
    }


def train_model(model: Transformer, shard: Shard, params: Params, paths: Paths) -> Trained:
    """Train in place, here or on the workers of Ray."""
    segments_of = shard.segments if params.confine_attention else None
    loader = WindowLoader(shard.tokens, params.context, params.batch_size, params.base.seed, segments_of)
    if params.launcher == "ray":
        from llm.train.layout import Layout
        from llm.train.ray_launcher import train_with_ray

        layout = Layout(**{key: getattr(params, key) for key in LAYOUT}, micro_batch=params.micro_batch or 1)
        return train_with_ray(model, loader, params, params.base, paths.scratch, layout)
    model.to(params.base.torch_device, params.base.torch_dtype)
    engine = LocalEngine(model, params, compile=params.compile)
    meter = Meter(params.steps, params.base, model, params.batch_size * params.context)
    documents = partial(name_documents, shard, loader)
    trained = train(engine, loader.batch, params, params.base, paths.scratch, meter, documents, paths.follow())
    engine.restore_masters()
    finish(params, paths.scratch)
    return trained


def name_documents(shard: Shard, loader: WindowLoader, step: int) -> list[str]:
    """Return the ids of the documents that a step reads."""
    return [one for span in loader.spans(step) for one in shard.documents(*span)]


if __name__ == "__main__":
    main(Params, run)
