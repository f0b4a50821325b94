"""Tiny random causal models of other families, as transformers saves them, each with its own tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

TEXTS = ["The miller opens the sluice before dawn, and the wheel turns until noon. Who saw it? The cat sleeps."] * 4
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


def write_model(folder: Path, family: str, context: int = 64) -> Any:
    """Write `gpt2` (no token before a text) or `llama` (<s> before a text) and return the model."""
    disable_progress_bar()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    names = {"eos_token": "</s>"}
    if family == "llama":
        names["bos_token"] = "<s>"
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    size = len(tokenizer)
    model: Any
    if family == "gpt2":
        shape = GPT2Config(
            vocab_size=size, n_positions=context, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
        )
        model = GPT2LMHeadModel(shape)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=context, bos_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
    with torch.no_grad():  # logits of some size
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(folder)
    return model.eval()
