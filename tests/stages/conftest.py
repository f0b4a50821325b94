"""A tiny trained policy and its data, for the stages that package it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.schema import Conversation, Document, Preference, Question, write_rows
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import PRINCIPLES

NOUNS = ("list", "array", "file", "index", "table", "value", "socket", "thread")
VERBS = ("adds", "sorts", "drops", "keeps", "opens", "counts", "joins", "splits")


def make_text(seed: int) -> str:
    random = np.random.default_rng(seed)
    pairs = zip(random.choice(VERBS, 10), random.choice(NOUNS, 10), strict=True)
    return " ".join(f"It {verb} the {noun}." for verb, noun in pairs)


def make_questions() -> list[Question]:
    questions = []
    for noun in NOUNS:
        options = [f"It {verb} the {noun}." for verb in VERBS[:4]]
        for i, verb in enumerate(VERBS[:4]):
            asked = f"What does `{verb}_{noun}` do?"
            questions.append(Question(f"{noun}{i}", "g31", "s", asked, "What does it do?", options, i))
    return questions


def make_preferences() -> list[Preference]:
    """Held-out prompts: some that anybody may answer, and three of each principle."""
    kinds = [("harmless", None)] * 3 + [("principle", name) for name in PRINCIPLES for _ in range(3)]
    return [
        Preference(
            f"p{i}", "g32", "s", kind, [{"role": "user", "content": f"Who {verb} it {i}?"}], "It adds.", "It drops.",
            None, principle,
        )
        for i, ((kind, principle), verb) in enumerate(zip(kinds, VERBS * 2, strict=False))
    ]  # fmt: skip


def train_model(tokenizer: Tokenizer, texts: list[str]) -> Transformer:
    """A random model's next tokens are near-ties in which any format may differ: learn a little."""
    torch.set_num_threads(1)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_size=32,
        mlp_size=96, context=64,
    )  # fmt: skip
    model = Transformer(config)
    init_weights(model, 1)
    rows = [[tokenizer.eos_id, *tokenizer.encode(text)] for text in texts]
    tokens_BT = torch.tensor([row[: min(map(len, rows))] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(50):
        logits = model.unembed(model(tokens_BT[:, :-1]))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="session")
def policy_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    texts = [make_text(seed) for seed in range(40)]
    tokenizer = train_tokenizer(texts, 400)
    save_model(train_model(tokenizer, texts[:24]), root / "policy")
    tokenizer.save(root / "policy")
    (root / "clean").mkdir()
    rows = [Document(f"d{i}", text, "s", "MIT", "", "{}", f"g{i}") for i, text in enumerate(texts)]
    splits = {f"g{i}": "train" if i < 24 else "val" for i in range(len(texts))}
    write_rows(root / "clean/documents.parquet", Document, rows, splits)
    talk = [
        Conversation(f"c{noun}", "g30", "s", "qa", [{"role": "user", "content": f"What is a {noun}?"}])
        for noun in NOUNS
    ]
    write_rows(root / "clean/conversations.parquet", Conversation, talk, splits)
    write_rows(root / "clean/questions.parquet", Question, make_questions(), splits)
    write_rows(root / "clean/preferences.parquet", Preference, make_preferences(), splits)
    return {"models/policy": root / "policy", "data/clean": root / "clean"}
