"""Params base classes: frozen pydantic models that refuse unknown keys, and the error for a user's fault."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch


class ConfigError(ValueError):
    """A user's fault: names the key or path, the value, what is allowed and how to mend it."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


class BaseParams(BaseModel):
    """A section of params.yaml, or a library object's configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InitFrom(BaseParams):
    """A model to start from, and the digest of what is read of it; `make run INIT_FROM=...` writes them."""

    path: str = Field(min_length=1, description="a Qwen3-shaped Hugging Face folder, its tokenizer.json included")
    digest: str = Field(pattern="^[0-9a-f]{32}$", description="of its content: llm.model.files.digest_folder")
    release: str | None = Field(None, pattern="^[0-9a-f]{16}$", description="the release of ours that it is a copy of")


class Base(BaseParams):
    """What every stage receives: whatever changes sums must be a param."""

    seed: int = Field(1234, ge=0, le=2**31 - 1, description="seeds every generator and every hash-based sample")
    threads: int = Field(2, ge=1, le=256, description="CPU threads for torch; changes the order of sums")
    dtype: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="compute type of training, weights stay fp32; fp16 scales the loss, for GPUs without bf16"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models are trained; auto: a GPU if any")
    init_from: InitFrom | None = Field(None, description="the model to start from; none: pretrain makes a new one")

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The compute type as torch names it; torch is imported only by those who ask."""
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.dtype]

    @property
    def torch_device(self) -> "torch.device":
        """The device of training. Raises ConfigError when base.device is cuda and there is none."""
        import torch

        found = torch.cuda.is_available()
        require(found or self.device != "cuda", "base.device is cuda, but torch sees no GPU: say auto or cpu")
        return torch.device("cuda" if found and self.device != "cpu" else "cpu")


class StageParams(BaseParams):
    """Params of one stage: its own section, and `base`."""

    base: Base = Base()
    RESUMABLE: ClassVar[frozenset[str]] = frozenset()  # keys whose change leaves a checkpoint of use

    def describe_state(self) -> str:
        """Return as JSON what the state of a stopped run depends on."""
        return self.model_dump_json(exclude=set(self.RESUMABLE))
