"""Any causal model in a Hugging Face folder, through transformers, as a task's model.

Beginning-of-text tokens are set where the tokenizer sets them; a text without a prompt follows that token, or the end
token where there is none. Log-probabilities are summed in fp32 whatever the weights' type.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from llm.config import ConfigError, require
from llm.evals.tasks.items import Prompt
from llm.evals.tasks.model import Ids, move_spaces, split_pair
from llm.infer.score import pad_right
from llm.progress import track

LOGIT_ENTRIES = 1 << 27  # of a batch, 4 bytes each
MAX_ROWS = 64
LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
UNKNOWN_LENGTH = 2048


class HuggingFaceModel:
    """A causal model, in the type that its file has, on a GPU where there is one."""

    def __init__(self, folder: Path):
        """Load it. Raises ConfigError: the folder holds no such model."""
        require((folder / "config.json").is_file(), f"{folder}: no config.json; name a Hugging Face model's folder")
        disable_progress_bar()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder}: not a causal model that transformers can load: {error}") from None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)
        self.context = self._find_context()
        self.limit = self.context + 1  # the last token is only predicted
        first = self.tokenizer.bos_token_id
        self.first_id: int = self.tokenizer.eos_token_id if first is None else first
        require(self.first_id is not None, f"{folder}: the tokenizer names neither a bos_token nor an eos_token")

    def _find_context(self) -> int:
        config = self.model.config.get_text_config()
        return next((int(n) for key in LENGTH_KEYS if (n := getattr(config, key, None))), UNKNOWN_LENGTH)

    def encode_prompt(self, prompt: Prompt) -> Ids:
        """Return the ids of a text, or of messages by the folder's chat template with an opened answer."""
        return self._encode(self._write(prompt)) or [self.first_id]

    def encode_pair(self, prompt: Prompt, continuation: str) -> tuple[Ids, Ids]:
        """Return the ids of the prompt and of what follows it."""
        head, tail = move_spaces(self._write(prompt), continuation)
        if not head:
            ids: Ids = self.tokenizer.encode(tail, add_special_tokens=False)
            return split_pair([self.first_id], ids if ids[:1] == [self.first_id] else [self.first_id, *ids])
        return split_pair(self._encode(head), self._encode(head + tail))

    def _write(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        require(bool(self.tokenizer.chat_template), "the tokenizer has no chat template: use --no-chat-template")
        return str(self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))

    def _encode(self, text: str) -> Ids:
        opened = text.startswith(self.tokenizer.decode([self.first_id]))  # by a template that sets the token itself
        ids: Ids = self.tokenizer.encode(text, add_special_tokens=not opened)
        return ids

    @torch.inference_mode()
    def score(self, sequences: Sequence[Ids], starts: Sequence[int]) -> list[list[float]]:
        """Return the log-probability [nats] of each sequence's tokens from its start on."""
        result: list[list[float]] = [[] for _ in sequences]
        vocab_size = int(self.model.config.get_text_config().vocab_size)
        for rows in track(list(self._batch([len(one) for one in sequences], vocab_size)), "scoring"):
            tokens_BT, _ = pad_right([sequences[i] for i in rows], self.device)
            logits_BTV = self.model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
            for row, i in enumerate(rows):
                span = slice(starts[i] - 1, len(sequences[i]) - 1)
                targets_N = tokens_BT[row, starts[i] : len(sequences[i])]
                result[i] = (-F.cross_entropy(logits_BTV[row, span].float(), targets_N, reduction="none")).tolist()
        return result

    def _batch(self, lengths: Sequence[int], vocab_size: int) -> list[list[int]]:
        """Return places in batches of like length, the longest first: what does not fit memory fails at once."""
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            width = lengths[batches[-1][0]] if batches else 0
            full = not batches or len(batches[-1]) == MAX_ROWS
            if full or (len(batches[-1]) + 1) * width * vocab_size > LOGIT_ENTRIES:
                batches.append([])
            batches[-1].append(i)
        return batches

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Ids], max_new_tokens: int) -> list[str]:
        """Return the greedy answers."""
        pad = self.tokenizer.pad_token_id
        pad = self.first_id if pad is None else pad
        result = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        batches = [order[at : at + MAX_ROWS] for at in range(0, len(order), MAX_ROWS)]
        for rows in track(batches, "answering"):
            width = len(prompts[rows[0]])
            padded = [[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in rows]
            mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows]
            found = self.model.generate(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
            )
            for i, ids in zip(rows, found[:, width:].tolist(), strict=True):
                result[i] = self.tokenizer.decode(ids, skip_special_tokens=True)
        return result
