"""A packaged release on disk: found, verified, and loaded into an engine's backend."""

import importlib.util
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from llm.config import ConfigError, require
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.export.verify import verify
from llm.serve.engine import Backend

log = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "models" / "release"


@dataclass(frozen=True)
class Release:
    """What is served: its name, its fingerprint, and how to reach its files."""

    folder: Path
    model: str
    hash: str
    passed: bool  # the release gate; a failed one is served under a visible mark
    served: Path
    context: int
    created: int
    tokenizer: Tokenizer
    token_bytes: list[bytes] = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> "Release":
        """Read and verify a folder. Raises ConfigError that names the remedy."""
        path = folder / "release.json"
        require(path.is_file(), f"{path}: no such file; nothing is packaged yet: run `make run` first")
        wrong = verify(folder)
        require(
            not wrong,
            f"{folder}: differs from its SHA256SUMS: {', '.join(wrong[:5])}; run `dvc checkout` or `make run`",
        )
        try:
            about = json.loads(path.read_text())
            served = folder / about["served"]
            model, release, context = str(about["model"]), str(about["release"]), int(about["context"])
            passed = about["gate"]["passed"] is True
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: not a release description ({error!r}); run `make run` again") from None
        require(served.is_file(), f"{served}: named in {path}, but missing; run `make run` again")
        tokenizer = Tokenizer.load(folder / "hf")
        created = int(path.stat().st_mtime)
        return cls(folder, model, release, passed, served, context, created, tokenizer, tokenizer.token_bytes())

    @property
    def fingerprint(self) -> str:
        """The release hash, marked when the gate failed."""
        return self.hash if self.passed else f"{self.hash}-not-released"

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return frozenset((self.tokenizer.im_end_id, self.tokenizer.eos_id))

    def encode_chat(self, turns: list[dict[str, str]]) -> list[int]:
        """Return the prompt of a conversation; no content can forge a turn."""
        return render(self.tokenizer, turns, add_generation_prompt=True)[0]

    def encode_text(self, text: str) -> list[int]:
        """Return the prompt of a text; every training document followed an end-of-text token, so it does too."""
        return [self.tokenizer.eos_id, *self.tokenizer.encode(text)]


def find_release() -> Path:
    """Return the folder named by GRISTMILL_RELEASE, or the project's models/release."""
    return Path(os.environ.get("GRISTMILL_RELEASE") or DEFAULT_FOLDER)


def load_backend(release: Release) -> Backend:
    """Load the model for the engine that GRISTMILL_ENGINE names; without a name, OpenVINO where it is installed."""
    backend = _load(release, os.environ.get("GRISTMILL_ENGINE", ""))
    log.info("engine %s | release %s | context %d", backend.name, release.fingerprint, release.context)
    return backend


def _load(release: Release, name: str) -> Backend:
    require(
        name in ("", "openvino", "torch"),
        f"GRISTMILL_ENGINE={name!r}: allowed are 'openvino' and 'torch'",
    )
    installed = importlib.util.find_spec("openvino_genai") is not None
    if not name and not installed:
        log.warning("openvino_genai is not installed: serving hf/ with torch instead of the released GGUF file")
    if name == "openvino" or (not name and installed):
        require(installed, "GRISTMILL_ENGINE=openvino: openvino_genai is not installed; use GRISTMILL_ENGINE=torch")
        from llm.serve.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(release.served, release.context, exact=os.environ.get("GRISTMILL_EXACT") == "1")
    from llm.serve.torch_backend import TorchBackend

    return TorchBackend(release.folder / "hf")
