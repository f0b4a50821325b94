"""Pretrain: token shards -> base model, by next-token prediction.

A killed run continues from its last checkpoint and ends in the same bytes.
"""

from functools import partial
from typing import Any, Literal

from pydantic import Field

from llm.config import StageParams
from llm.data.loader import WindowLoader
from llm.data.shards import Shard, open_shard
from llm.data.tokenizer import Tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from llm.train.local import LocalEngine, TrainConfig
from llm.train.loop import finish, train
from llm.train.meter import Meter
from llm.train.trace import write_trace
from stages.plumbing.stage import Paths, main


class Params(TrainConfig, StageParams):
    # a longer run goes on from a shorter one's stable phase
    RESUMABLE = frozenset({"steps", "decay", "checkpoint_every", "checkpoint_minutes"})

    hidden_size: int = Field(ge=32, multiple_of=32, description="width of the residual stream")
    num_layers: int = Field(ge=1, le=256)
    num_heads: int = Field(ge=1, description="query heads")
    num_kv_heads: int = Field(ge=1, description="key and value heads; must divide num_heads")
    head_size: int = Field(64, ge=8, multiple_of=8, description="size of one head")
    mlp_size: int = Field(ge=32, multiple_of=32, description="inner width of SwiGLU")
    context: int = Field(256, ge=16, description="tokens per training sequence")
    max_context: int = Field(512, ge=16, description="positions that the model may be served with; >= context")
    launcher: Literal["local", "ray"] = Field("local", description="ray: Ray Train and DeepSpeed over `workers`")
    workers: int = Field(1, ge=1, description="processes of the ray launcher")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage of the ray launcher")
    compile: bool = Field(False, description="torch.compile: about 25 s of start-up; other weights than eager")
    confine_attention: bool = Field(False, description="tokens see their own document only, not the window before it")

    def shape(self, vocab_size: int) -> ModelConfig:
        """Return the model's shape for a tokenizer of `vocab_size`."""
        names = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_size", "mlp_size")
        sizes = {name: getattr(self, name) for name in names}
        return ModelConfig(vocab_size=vocab_size, context=max(self.context, self.max_context), **sizes)


def run(params: Params, paths: Paths) -> dict[str, Any]:
    tokenizer = Tokenizer.load(paths.deps["models/tokenizer"])
    shard = open_shard(paths.deps["data/tokens"], "train")
    segments_of = shard.segments if params.confine_attention else None
    loader = WindowLoader(shard.tokens, params.context, params.batch_size, params.base.seed, segments_of)
    model = Transformer(params.shape(tokenizer.vocab_size))
    init_weights(model, params.base.seed)
    if params.launcher == "ray":
        from llm.train.ray_launcher import train_with_ray

        trained = train_with_ray(model, loader, params, params.base, paths.scratch, params.workers, params.zero_stage)
    else:
        model.to(params.base.torch_device, params.base.torch_dtype)
        engine = LocalEngine(model, params, compile=params.compile)
        meter = Meter(params.steps, params.base, model, params.batch_size * params.context)
        documents = partial(name_documents, shard, loader)
        trained = train(engine, loader.batch, params, params.base, paths.scratch, meter, documents, paths.follow())
        engine.restore_masters()
        finish(params, paths.scratch)
    save_model(model, paths.outs["models/base"])
    tokenizer.save(paths.outs["models/base"])
    write_trace(paths.outs["models/base"], trained.trace)
    paths.cost.update(trained.cost)
    seen = params.steps * params.batch_size * params.context
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": params.steps,
        "tokens_seen": seen,
        "epochs": round(seen / len(shard.tokens), 3),
        "final_loss": trained.trace[-1]["loss"],
    }


def name_documents(shard: Shard, loader: WindowLoader, step: int) -> list[str]:
    """Return the ids of the documents that a step reads."""
    return [one for span in loader.spans(step) for one in shard.documents(*span)]


if __name__ == "__main__":
    main(Params, run)
