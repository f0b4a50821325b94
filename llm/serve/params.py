"""The `serve` section of params.yaml: which engine answers, and the limits behind which it stands."""

import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from llm.config import BaseParams, ConfigError, require

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "params.yaml"


class KeyLimits(BaseParams):
    """What one API key may use, unless it was made with limits of its own."""

    requests_per_minute: int = Field(600, ge=1, description="requests that a key may begin in any minute")
    tokens_per_minute: int = Field(600_000, ge=1, description="prompt and answer tokens of a key in any minute")
    parallel: int = Field(64, ge=1, description="requests of a key that run or wait at once")
    tokens_per_day: int = Field(50_000_000, ge=1, description="prompt and answer tokens of a key in a UTC day")


class ServeParams(BaseParams):
    """How the release is served; nothing here changes a release."""

    engine: Literal["auto", "openvino", "torch", "vllm"] = Field(
        "auto", description="auto: openvino where it is installed, else torch"
    )
    exact: bool = Field(
        False, description="openvino: the same answer alone and among others: one request after the other"
    )
    max_running: int = Field(64, ge=1, description="requests that the engine advances together")
    max_queue: int = Field(256, ge=0, description="requests that may wait for the engine; one more gets 429")
    stream_interval: int = Field(
        4, ge=1, description="tokens of a stream that are sent together, within 40 ms; its first and its last at once"
    )
    max_body_bytes: int = Field(8_000_000, ge=1_000, description="largest request body; a larger one gets 413")
    max_prompt_chars: int = Field(1_000_000, ge=1, description="longest text in a field, refused before it is encoded")
    request_timeout_s: float = Field(600, gt=0, description="a request that takes longer ends with an error")
    body_timeout_s: float = Field(30, gt=0, description="a body that is not sent whole within it gets 408")
    grace_s: float = Field(30, ge=0, description="after SIGTERM running answers have this long to end")
    limits: KeyLimits = KeyLimits()

    @classmethod
    def read(cls, path: Path | None = None) -> "ServeParams":
        """Return the section of a params.yaml: the given one, or that of GRISTMILL_PARAMS, or the project's own.

        A Bento holds none, and is served with the defaults. Raises: ConfigError: names the key at fault.
        """
        named = os.environ.get("GRISTMILL_PARAMS")
        require(not named or Path(named).is_file(), f"GRISTMILL_PARAMS={named}: no such file")
        path = path or Path(named or DEFAULT_FILE)
        if not path.is_file():
            return cls()
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf8")) or {}
            require(isinstance(tree, dict), f"{path}: expected a mapping of sections")
            return cls.model_validate(tree.get("serve") or {})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(["serve", *map(str, first["loc"])])
            raise ConfigError(f"{path}: {key}: {first['msg']}") from None
        except (yaml.YAMLError, OSError) as error:
            raise ConfigError(f"{path}: {error}") from None
