"""Releases of random weights, which stand in for a trained model where speed or the server's care is measured.

`python -m benchmarks.plumbing.stand_ins gpt2 DIR`: 124 million parameters, GPT-2 small's shape in Qwen3's form.
`python -m benchmarks.plumbing.stand_ins markers DIR`: a small one whose answers carry a marker (see `make_markers`).
Both hold a q8_0 file, which is what a release serves, and the tokenizer; neither has weights in Hugging Face's format.
"""

import argparse
import itertools
import json
import string
from pathlib import Path

import torch

from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.export.gguf import write_gguf
from llm.export.verify import write_sums
from llm.model.config import ModelConfig
from llm.model.folder import to_hf_state
from llm.model.transformer import Transformer, init_weights
from llm.quant.blocks import pack_q8_0

ROOT = Path(__file__).resolve().parents[2]
NUM_MARKERS = 64
MARKERS = ["".join(pair) for pair in itertools.islice(itertools.product(string.ascii_uppercase, repeat=2), NUM_MARKERS)]


def make_gpt2(folder: Path) -> None:
    """Write the large one. Its tokenizer is trained on this project's code; the other rows are padding."""
    texts = [path.read_text(encoding="utf8") for path in sorted((ROOT / "llm").rglob("*.py"))]
    tokenizer = train_tokenizer(texts, 4096)
    config = ModelConfig(
        vocab_size=50_304,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        head_size=64,
        mlp_size=2048,  # three matrices of SwiGLU with as many weights as two of GPT-2's 3072
        context=1024,
    )
    model = Transformer(config)
    init_weights(model, seed=0)
    # A token with a zero row has logit 0, and so is never the greedy choice: answers are text, and each token shows.
    unseen = [i for i, piece in enumerate(tokenizer.token_bytes()) if not piece or max(piece) >= 0x80]
    with torch.no_grad():
        model.embedding.weight[unseen] = 0
        model.embedding.weight[tokenizer.vocab_size :] = 0
    write_release(folder, model, tokenizer)


def make_markers(folder: Path) -> None:
    """Write a model that answers in words which begin like the last word of the prompt, at any temperature.

    A word is a token: a space, two capital letters (the marker) and a small one. The first half of the residual stream
    holds the marker's code and no layer writes into it, so the logits of the marker's words stand far above all others.
    Which of them comes next depends on the second half, where attention to the whole prompt and the MLP work as ever.
    """
    words = [f" {marker}{letter}" for marker in MARKERS for letter in string.ascii_lowercase]
    tokenizer = train_tokenizer([*words, *words], 16_384)  # ends earlier: when every word is one token
    ids = [i for (i,) in tokenizer.encode_batch(words)]
    half = 64
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=2 * half,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=32,
        mlp_size=256,
        context=1024,
        tie_embeddings=False,
    )
    model = Transformer(config)
    init_weights(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    code = torch.randint(0, 2, (NUM_MARKERS, half), generator=generator) * 2.0 - 1.0
    code_WD = code.repeat_interleave(len(string.ascii_lowercase), 0)
    assert model.head is not None
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.head.weight.zero_()
        for matrix, letter_std in ((model.embedding.weight, 1.0), (model.head.weight, 0.25)):
            matrix[ids] = torch.cat([code_WD, letter_std * torch.randn(code_WD.shape, generator=generator)], 1)
        for name, matrix in model.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                matrix[:half] = 0
    write_release(folder, model, tokenizer)


def write_release(folder: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    """Write what the server needs of a release."""
    packed = {name: pack_q8_0(matrix.numpy()) for name, matrix in to_hf_state(model).items() if matrix.ndim == 2}
    served = "gguf/model-q8_0.gguf"
    write_gguf(folder / served, model, tokenizer, "q8_0", packed)
    tokenizer.save(folder / "hf")
    about = {
        "model": "gristmill",
        "release": "0" * 16,
        "served": served,
        "context": model.config.context,
        "gate": {"passed": False, "checks": []},
    }
    (folder / "release.json").write_text(json.dumps(about))
    write_sums(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["gpt2", "markers"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    (make_gpt2 if arguments.kind == "gpt2" else make_markers)(arguments.folder)


if __name__ == "__main__":
    main()
