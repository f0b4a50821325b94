"""Supervised fine-tuning: base model and conversations -> a model that answers.

Loss on assistant tokens only, in ChatML, each of the assistant's messages by its weight. Kinds of conversation are
repeated by `repeat`, so that a few hundred lines of everyday talk are not drowned by questions about functions. With
`pack` several conversations share a row, blind to one another; with `patience` the held-out loss ends the run, and
the best weights stay. With `lora` only adapters learn; models/sft is the merged model all the same, and holds the
adapter in adapter/.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from llm.config import StageParams, require
from llm.data.chat_shards import open_chats
from llm.data.loader import ConversationLoader, PackedLoader, Row, pad_batch
from llm.data.tokenizer import Tokenizer
from llm.model.folder import load_model, save_model
from llm.train.early_stop import EarlyStop, EarlyStopConfig
from llm.train.local import LocalEngine, TrainConfig, evaluate_loss
from llm.train.loop import train
from llm.train.lora import LoraConfig, add_adapters, save_adapted
from llm.train.meter import Meter
from llm.train.trace import write_trace
from stages.plumbing.stage import Paths, main


class Params(TrainConfig, EarlyStopConfig, StageParams):
    max_len_tokens: int = Field(256, ge=16, description="longer conversations, or over the context, are counted only")
    pack: bool = Field(False, description="rows of max_len_tokens hold several conversations; off: one, padded")
    repeat: dict[str, int] = Field({"smalltalk": 4, "principle": 4}, description="copies per kind of conversation")
    lora: LoraConfig | None = Field(None, description="train low-rank adapters; none: every weight learns")


def run(params: Params, paths: Paths) -> dict[str, Any]:
    tokenizer = Tokenizer.load(paths.deps["models/base"])
    model = load_model(paths.deps["models/base"], params.base.torch_dtype).to(params.base.torch_device)
    width = min(params.max_len_tokens, model.config.context)
    rows, names, too_long = read_conversations(paths.deps["data/chats"], width, params.repeat)
    require(bool(rows["train"]), "data/clean holds no conversations: add chat data to ingest.sources")
    loader: ConversationLoader | PackedLoader
    if params.pack:
        loader = PackedLoader(rows["train"], width, params.batch_size, params.base.seed, tokenizer.eos_id)
    else:
        loader = ConversationLoader(rows["train"], params.batch_size, params.base.seed, tokenizer.eos_id)
    held_out = [pad_batch(rows["val"][i : i + 32], tokenizer.eos_id) for i in range(0, min(512, len(rows["val"])), 32)]
    require(bool(held_out) or not params.eval_every, "sft.eval_every: there is no held-out conversation; set it to 0")
    before = evaluate_loss(model, held_out)
    if params.lora is not None:
        add_adapters(model, params.lora, params.base.seed)
    engine = LocalEngine(model, params)
    meter = Meter(params.steps, params.base, model, loader.tokens_per_step)
    watch = EarlyStop(params, params.steps, lambda: evaluate_loss(model, held_out), engine.keep_weights)

    def name_conversations(step: int) -> list[str]:
        return [names[i] for i in loader.chosen(step)]

    trained = train(
        engine, loader.batch, params, params.base, paths.scratch, meter, name_conversations, paths.follow(), watch
    )
    engine.return_to_kept()
    after = evaluate_loss(model, held_out)
    engine.restore_masters()
    if params.lora is None:
        save_model(model, paths.outs["models/sft"])
    else:
        save_adapted(model, params.lora, paths.deps["models/base"], paths.outs["models/sft"])
    tokenizer.save(paths.outs["models/sft"])
    write_trace(paths.outs["models/sft"], trained.trace)
    paths.cost.update(trained.cost)
    return {
        "conversations": {split: len(pairs) for split, pairs in rows.items()},
        "too_long": too_long,
        "held_out_loss": {"before": before, "after": after, "curve": watch.curve, "kept_step": watch.kept_step},
        "final_loss": trained.trace[-1]["loss"],
    }


def read_conversations(
    folder: Path, max_len: int, repeat: dict[str, int]
) -> tuple[dict[str, list[Row]], list[str], int]:
    """Return each split's (ids, weights) of conversations that fit, the ids of train's, and how many do not fit."""
    rows: dict[str, list[Row]] = {}
    names: list[str] = []
    too_long = 0
    for split in ("train", "val"):
        chats = open_chats(folder, split)
        rows[split] = []
        for i, (kind, length) in enumerate(zip(chats.kinds, np.diff(chats.shard.offsets), strict=True)):
            if length > max_len:
                too_long += 1
                continue
            copies = repeat.get(kind, 1) if split == "train" else 1
            rows[split] += [chats.row(i)] * copies
            names += [chats.shard.ids[i].decode()] * copies if split == "train" else []
    return rows, names, too_long


if __name__ == "__main__":
    main(Params, run)
