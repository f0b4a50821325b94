"""Shapes of the core transformer from a learning scale to a cluster's, each with where it comes from.

A name tells the count within 3 %. The vocabulary is the size that the count assumes; a tokenizer of another size
replaces it (`shape.model_copy(update={"vocab_size": ...})`), and only embedding and unembedding change with it.
"""

from llm.model.config import ModelConfig

PRESETS = {
    # 0.5M, to watch learning in seconds. Ours: depth and width chosen so that blocks hold more than the vocabulary.
    "nano": ModelConfig(
        vocab_size=2048, hidden_size=96, num_layers=3, num_heads=3, num_kv_heads=3, head_size=32, mlp_size=224,
        context=256,
    ),
    # 4.3M, the laptop default. Ours: four layers with two wide heads, measured against six with four (docs/log.md).
    "mini": ModelConfig(
        vocab_size=4096, hidden_size=256, num_layers=4, num_heads=2, num_kv_heads=2, head_size=128, mlp_size=704,
        context=512,
    ),
    # 124M. GPT-2 small (Radford et al. 2019); SwiGLU at 8/3 of the width has the parameters of its MLP at 4.
    "small": ModelConfig(
        vocab_size=50_304, hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=12, head_size=64, mlp_size=2048,
        context=1024,
    ),
    # 1.02B. The blocks of Llama 3.2 1B (arXiv:2407.21783 and its model card) without its 128,256-entry vocabulary.
    "1b": ModelConfig(
        vocab_size=24_576, hidden_size=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_size=64, mlp_size=8192,
        context=2048, rope_theta=500_000.0,
    ),
    # 6.9B. OLMo 7B (arXiv:2402.00838, table 1).
    "7b": ModelConfig(
        vocab_size=50_304, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_size=128,
        mlp_size=11_008, context=4096, tie_embeddings=False,
    ),
    # 29.9B. Yi-34B (arXiv:2403.04652, table 1) with 52 of its 60 layers, which pipelines of 2 and 4 stages divide.
    "30b": ModelConfig(
        vocab_size=64_000, hidden_size=7168, num_layers=52, num_heads=56, num_kv_heads=8, head_size=128,
        mlp_size=20_480, context=4096, rope_theta=5_000_000.0, tie_embeddings=False,
    ),
}  # fmt: skip
