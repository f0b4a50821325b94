"""The Hugging Face folder of a release, and the proof that `transformers` reads it as we do."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.model.folder import load_model

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def copy_folder(model: Path, target: Path) -> None:
    """Copy what a reader of the model needs, and nothing of its training."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(model / name, target / name)


@torch.inference_mode()
def compare_logits(folder: Path, windows: Sequence[Sequence[int]]) -> float:
    """Return the largest difference of any logit between transformers' Qwen3 and ours, both in fp32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ours = load_model(folder, torch.float32).eval()
    largest = 0.0
    for window in windows:
        tokens_BT = torch.tensor([list(window)])
        gap = theirs(tokens_BT).logits - ours.unembed(ours(tokens_BT))
        largest = max(largest, float(gap.abs().max()))
    return largest


def compare_tokens(folder: Path, texts: Sequence[str], chats: Sequence[Sequence[Mapping[str, str]]]) -> float:
    """Return the share of texts and conversations that transformers' tokenizer turns into the same ids as ours.

    Texts that hold a special token are left out: transformers parses it, and we never do.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = Tokenizer.load(folder)
    specials = [ours.decode([i]) for i in sorted(ours.special_ids)]

    def plain(text: str) -> bool:
        return not any(special in text for special in specials)

    same: list[bool] = []
    for text in filter(plain, texts):
        same.append(theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text))
    for chat in chats:
        if all(plain(message["content"]) for message in chat):
            messages = [dict(message) for message in chat]
            ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            same.append(ids == render(ours, messages, add_generation_prompt=True)[0])
    return sum(same) / len(same) if same else 0.0
