"""Shape of the core transformer (Qwen3 dense)."""

from pydantic import Field, model_validator

from llm.config import BaseParams


class ModelConfig(BaseParams):
    """Everything that a checkpoint's weights depend on."""

    vocab_size: int = Field(ge=260, description="entries of the tokenizer, special tokens included")
    hidden_size: int = Field(ge=32, multiple_of=32, description="width of the residual stream, D")
    num_layers: int = Field(ge=1, le=256)
    num_heads: int = Field(ge=1, description="query heads, H")
    num_kv_heads: int = Field(ge=1, description="key and value heads; must divide num_heads")
    head_size: int = Field(ge=8, multiple_of=8, description="size of one head, K; even, because RoPE turns pairs")
    mlp_size: int = Field(ge=32, multiple_of=32, description="inner width of SwiGLU")
    context: int = Field(ge=16, le=1 << 20, description="longest sequence in tokens")
    rope_theta: float = Field(10_000.0, gt=1)
    norm_eps: float = Field(1e-6, gt=0)
    tie_embeddings: bool = Field(True, description="the unembedding is the embedding")

    @model_validator(mode="after")
    def _check_heads(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}: "
                f"each key/value head serves a whole number of query heads"
            )
        return self
