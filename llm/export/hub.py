"""The Hugging Face folder of a release, and the proof that `transformers` reads it as we do."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.export.parity import compare_ids, leave_out_special
from llm.export.sample import Sample
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


def load_hub(folder: Path) -> torch.nn.Module:
    """Return the model as transformers loads it, in fp32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval()


@torch.inference_mode()
def compare_logits(folder: Path, windows: Sequence[Sequence[int]]) -> float:
    """Return the largest difference of any logit between transformers' Qwen3 and ours, both in fp32."""
    theirs = load_hub(folder)
    ours = load_model(folder, torch.float32).eval()
    largest = 0.0
    for window in windows:
        tokens_BT = torch.tensor([list(window)])
        gap = theirs(tokens_BT).logits - ours.unembed(ours(tokens_BT))
        largest = max(largest, float(gap.abs().max()))
    return largest


@torch.inference_mode()
def score_hub(folder: Path, sample: Sample) -> tuple[list[list[float]], list[int]]:
    """Return transformers' log-probabilities of each window's tokens and its greedy token at each position."""
    model = load_hub(folder)
    logprobs: list[list[float]] = []
    greedy: list[list[int]] = []
    for window in sample.windows:
        tokens_T = torch.tensor(window)
        logits_TV = model(tokens_T[None]).logits[0]
        logprobs.append(logits_TV[:-1].log_softmax(dim=-1).gather(1, tokens_T[1:, None])[:, 0].tolist())
        greedy.append(logits_TV.argmax(dim=-1).tolist())
    return logprobs, [greedy[window][length - 1] for window, length in sample.positions]


def compare_tokens(folder: Path, texts: Iterable[str], chats: Sequence[Sequence[Mapping[str, str]]]) -> dict[str, Any]:
    """Return how far transformers' tokenizer and chat template give the ids that ours do (`parity.compare_ids`)."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = Tokenizer.load(folder)
    plain = leave_out_special(ours, texts)
    expected = ours.encode_batch(plain)
    found = [theirs(text, add_special_tokens=False)["input_ids"] for text in plain]
    for chat in chats:
        contents = [message["content"] for message in chat]
        if leave_out_special(ours, contents) == contents:
            messages = [dict(message) for message in chat]
            found.append(theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
            expected.append(render(ours, messages, add_generation_prompt=True)[0])
    return compare_ids(ours, expected, found)
