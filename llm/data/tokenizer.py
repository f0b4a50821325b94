"""Byte-level BPE with the Qwen2 split pattern and ChatML tokens: the one tokenizer that every reader knows.

No normaliser in tokenizer.json, because GGUF readers skip it; text is normalised before it gets here.
Special tokens found in text are ordinary text: only `render` (llm.data.chat) and callers by id can produce them.
A tokenizer of another model is adopted when it is of this kind: Qwen's own is, with its NFC normaliser taken out (text
is in NFC when it gets here), more special tokens, and a chat template that our ChatML replaces. A model may have rows
beyond its tokenizer's entries.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from llm.config import ConfigError, require

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's published pattern; GGUF readers select it by the name "qwen2".
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# ChatML, without a default system prompt; the same text as llm.data.chat.render builds from ids.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same text, with transformers' own mark on what the assistant says (`return_assistant_tokens_mask`). Not for GGUF
# files: some of their readers compile the template with a plain Jinja, which refuses a file with that tag.
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, backend: Backend):
        backend.encode_special_tokens = True  # not saved in tokenizer.json nor in a pickle, so set each time
        self.backend = backend
        ids = [i for token in SPECIAL_TOKENS if (i := backend.token_to_id(token)) is not None]
        require(len(ids) == len(SPECIAL_TOKENS), f"the tokenizer lacks one of {', '.join(SPECIAL_TOKENS)}")
        self.eos_id, self.im_start_id, self.im_end_id = ids
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        # Entries that are found in text as a whole: another model's <think>, for example. Ours has none.
        self.phrases = {i: token.content for i, token in added.items() if not token.special}

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[Backend]]:
        return Tokenizer, (self.backend,)  # a copy or another process's is made anew, so that the setting is not lost

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json of a folder."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; run `dvc repro tokenize` first")
        return cls(Backend.from_file(str(path)))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json (with the chat template) and generation_config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        eos, _, end = SPECIAL_TOKENS
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": MARKED_TEMPLATE,
            "eos_token": end,
            "pad_token": eos,
            "bos_token": eos,  # what every training document followed; readers are not to add it by themselves
            "unk_token": None,
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        }
        stops = [self.im_end_id, self.eos_id]
        generation = {"bos_token_id": self.eos_id, "eos_token_id": stops, "pad_token_id": self.eos_id}
        for name, content in (("tokenizer_config.json", config), ("generation_config.json", generation)):
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens in it are encoded letter by letter."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, in parallel."""
        return [list(one.ids) for one in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each id; special tokens have none."""
        to_byte = {char: byte for byte, char in _byte_alphabet().items()}
        whole = dict.fromkeys(self.special_ids, b"") | {i: text.encode() for i, text in self.phrases.items()}
        return [
            whole[i] if i in whole else bytes(to_byte[char] for char in self.backend.id_to_token(i) or "")
            for i in range(self.vocab_size)
        ]


def adopt_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model of another hand. Raises ConfigError that names all in which it differs."""
    path = folder / "tokenizer.json"
    require(path.is_file(), f"{path}: no such file; write it with transformers' AutoTokenizer and save_pretrained")
    content = json.loads(path.read_text(encoding="utf8"))  # the library would give entries with a gap other ids
    wrong = list_differences(content)
    require(
        not wrong,
        f"{path}: not a byte-level BPE that every reader of ours knows: {'; '.join(wrong)}. Start from a model with "
        f"such a tokenizer (Qwen3's), or train a new model: remove base.init_from",
    )
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    lacking = [token for token in SPECIAL_TOKENS if token not in special]
    require(
        not lacking,
        f"{path}: lacks the special tokens {', '.join(lacking)}. Add them with transformers: "
        f"tokenizer.add_special_tokens({{'additional_special_tokens': {lacking}}}), then "
        f"model.resize_token_embeddings(len(tokenizer)), and save_pretrained both into one folder",
    )
    backend = Backend.from_file(str(path))
    backend.normalizer = None  # type: ignore[assignment]
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend)


def list_differences(content: dict[str, Any]) -> list[str]:
    """Return in what a tokenizer.json differs from the kind that GGUF readers know as `qwen2`."""
    model, normaliser = content["model"], content.get("normalizer")
    decoder = (content.get("decoder") or {}).get("type")
    splits = (content.get("pre_tokenizer") or {}).get("pretokenizers") or [{}, {}]
    split, level = splits[0], splits[-1]
    is_qwen2 = (
        len(splits) == 2
        and split.get("pattern") == {"Regex": SPLIT_PATTERN}
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
        and level.get("type") == "ByteLevel"
        and not level.get("add_prefix_space")
        and not level.get("use_regex")
    )
    is_plain_bpe = model.get("type") == "BPE" and not any(
        model.get(key) for key in ("dropout", "unk_token", "byte_fallback", "ignore_merges", "end_of_word_suffix")
    )
    entries = (
        {**model["vocab"], **{one["content"]: one["id"] for one in content["added_tokens"]}} if is_plain_bpe else {}
    )
    checks = {
        f"model {model.get('type')} is no plain BPE": is_plain_bpe,
        "pre_tokenizer is not Qwen2's split": is_qwen2,
        f"decoder is {decoder}": decoder == "ByteLevel",
        f"normalizer is {normaliser}": normaliser in (None, {"type": "NFC"}),
        "ids have gaps": sorted(set(entries.values())) == list(range(len(entries))),
        "not every byte has an entry": not is_plain_bpe or entries.keys() >= set(_byte_alphabet().values()),
    }
    return [what for what, holds in checks.items() if not holds]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from texts. Same texts in the same order give the same tokenizer."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def _byte_alphabet() -> dict[int, str]:
    """Return GPT-2's printable stand-in for each byte: itself where printable, else a letter from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
