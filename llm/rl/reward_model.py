"""The reward model: a trunk, and linear heads on the hidden state of the conversation's last token.

Head `reward` says how good an answer is (Bradley-Terry: only differences between answers to one prompt have a
meaning); one head per principle gives the probability that the answer is a bad one under that principle.
A conversation ends with the answer's <|im_end|>: a truncated answer must be closed before it is scored.

Folder: config.json and model.safetensors (the trunk), heads.safetensors (`<head>.weight` [D], `<head>.bias`; its
metadata says of which kinds of prompts each cost head can tell good answers from bad ones).

Shape suffixes: B answers, T positions, D model, H heads.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm.config import ConfigError
from llm.infer.score import pad_right
from llm.model.folder import load_model, save_model
from llm.model.transformer import Transformer

PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")
HEADS = ("reward", *PRINCIPLES)


class RewardModel(nn.Module):
    """Trunk and heads; heads start at zero, so that an untrained model has no opinion."""

    def __init__(self, trunk: Transformer):
        super().__init__()
        self.trunk = trunk
        self.weight_HD = nn.Parameter(torch.zeros(len(HEADS), trunk.config.hidden_size))
        self.bias_H = nn.Parameter(torch.zeros(len(HEADS)))
        self.readable: dict[str, list[str]] = {}  # principle -> kinds of prompts whose costs its head can read

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return fp32 logits [B, H] of right-padded rows; a cost head's logit is the log-odds of a bad answer."""
        hidden_BTD = self.trunk(tokens_BT)
        rows_B = torch.arange(len(tokens_BT), device=tokens_BT.device)
        last_BD = hidden_BTD[rows_B, lengths_B - 1].float()
        # Product and sum, not a matrix product: autocast would round the rewards to bf16.
        logits_BH: Tensor = (last_BD[:, None, :] * self.weight_HD).sum(dim=-1) + self.bias_H
        return logits_BH

    def compute_logits(self, conversations: Sequence[Sequence[int]], batch_size: int = 64) -> Tensor:
        """Return the logits [n, H] of token id lists, in their order, without gradients."""
        limit = self.trunk.config.context
        for ids in conversations:
            if not 0 < len(ids) <= limit:
                raise ValueError(f"a conversation has {len(ids)} tokens; allowed are 1 to {limit}")
        order = sorted(range(len(conversations)), key=lambda i: len(conversations[i]))
        logits_NH = torch.zeros(len(conversations), len(HEADS))
        with torch.inference_mode():
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                batch = pad_right([conversations[i] for i in rows], self.weight_HD.device)
                logits_NH[rows] = self(*batch).cpu()
        return logits_NH.clone()

    def score(self, conversations: Sequence[Sequence[int]], batch_size: int = 64) -> Tensor:
        """Return [n, H] in the order of HEADS: the reward as it is, each cost as a probability of "bad"."""
        logits_NH = self.compute_logits(conversations, batch_size)
        return torch.cat([logits_NH[:, :1], logits_NH[:, 1:].sigmoid()], dim=1)

    def save(self, folder: Path) -> None:
        """Write the trunk and the heads, fp32."""
        save_model(self.trunk, folder)
        heads = {f"{name}.weight": self.weight_HD[i].detach().clone() for i, name in enumerate(HEADS)}
        heads |= {f"{name}.bias": self.bias_H[i].detach().clone() for i, name in enumerate(HEADS)}
        save_file(heads, folder / "heads.safetensors", {"readable": json.dumps(self.readable, sort_keys=True)})

    @classmethod
    def load(cls, folder: Path) -> "RewardModel":
        """Read a folder. Raises ConfigError when a file or a head is missing."""
        model = cls(load_model(folder))
        path = folder / "heads.safetensors"
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; is {folder} a reward model's folder?")
        heads = load_file(path)
        with safe_open(path, "pt") as content:
            model.readable = json.loads((content.metadata() or {}).get("readable", "{}"))
        missing = [name for name in HEADS if f"{name}.weight" not in heads or f"{name}.bias" not in heads]
        if missing:
            raise ConfigError(f"{path}: lacks {', '.join(missing)}; run `dvc repro reward`")
        with torch.no_grad():
            for i, name in enumerate(HEADS):
                model.weight_HD[i] = heads[f"{name}.weight"]
                model.bias_H[i] = heads[f"{name}.bias"]
        return model
