"""A tokenizer and a model that are small, trained for a moment, and written once for all tests here."""

from pathlib import Path

import pytest
import torch

from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights

TEXTS = [
    f"Return the {size} {thing} of a list, or None when it has no {thing}s.\n\nArgs: items: {size} values."
    for size in ("first", "last", "largest", "smallest", "next", "middle")
    for thing in ("item", "value", "number", "window", "token", "name")
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    """Trained for a moment: a random model's next tokens are near-ties, in which any format may differ."""
    torch.set_num_threads(1)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_size=32,
        mlp_size=96, context=96,
    )  # fmt: skip
    model = Transformer(config)
    init_weights(model, 1)
    rows = [[tokenizer.eos_id, *tokenizer.encode(text)] for text in TEXTS]
    width = min(map(len, rows))
    tokens_BT = torch.tensor([row[:width] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        logits = model.unembed(model(tokens_BT[:, :-1]))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="session")
def folder(model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(model, folder)
    tokenizer.save(folder)
    return folder
