"""Model folders as others write them: a random Qwen3 by transformers, and a tokenizer.json as Qwen's."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers

from llm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer

TEXTS = ["The miller opens the sluice before dawn. The wheel turns until noon, and the sacks are full of rye."] * 20
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip


def write_tokenizer(folder: Path, specials: tuple[str, ...] = SPECIAL_TOKENS) -> Tokenizer:
    """Write a tokenizer.json of 302 entries: special tokens last, an NFC normaliser, a phrase, padding."""
    ours = train_tokenizer(TEXTS, 300).backend
    model = json.loads(ours.to_str())["model"]
    vocab = sorted(model["vocab"].keys() - set(SPECIAL_TOKENS), key=model["vocab"].__getitem__)
    merges = [tuple(pair) for pair in model["merges"]]
    theirs = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    theirs.pre_tokenizer, theirs.decoder, theirs.normalizer = ours.pre_tokenizer, ours.decoder, normalizers.NFC()
    theirs.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in (*specials, "<|fim|>")])
    theirs.add_tokens([AddedToken("<think>", normalized=False)])
    theirs.enable_padding()
    folder.mkdir(parents=True, exist_ok=True)
    theirs.save(str(folder / "tokenizer.json"))
    return theirs


def write_qwen3(
    folder: Path, *, tie: bool = True, dtype: torch.dtype = torch.float32, shards: bool = False, vocab_size: int = 320
) -> Any:
    """Write a random Qwen3 and return it with the file's values in fp32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(3)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab_size, tie_word_embeddings=tie, **SIZES))
    with torch.no_grad():  # norms away from one, and logits of some size
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.2 if "norm" in name else 0.1))
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": "60KB"} if shards else {}))
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
