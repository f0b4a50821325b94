"""A packaged release on disk: found, verified, and loaded into an engine's backend."""

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm.config import ConfigError, require
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.export.verify import verify
from llm.serve.backend import Backend
from llm.serve.params import ServeParams

log = logging.getLogger(__name__)

ENGINES = ("auto", "openvino", "torch", "vllm")
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

    def encode_chat(self, turns: list[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Return the prompt of a conversation; no content can forge a turn."""
        return render(self.tokenizer, turns, add_generation_prompt)[0]

    def encode_text(self, text: str) -> list[int]:
        """Return the prompt of a text; every training document followed an end-of-text token, so it does too."""
        return [self.tokenizer.eos_id, *self.tokenizer.encode(text)]


def find_releases() -> list[Path]:
    """Return the folders named by GRISTMILL_RELEASE, of which the first is the default; else models/release."""
    names = [name for name in os.environ.get("GRISTMILL_RELEASE", "").split(os.pathsep) if name]
    return [Path(name) for name in names] or [DEFAULT_FOLDER]


def load_releases(folders: Sequence[Path]) -> list[Release]:
    """Read and verify folders; a model of a name that stands there already is `name@` and its hash's beginning.

    Raises: ConfigError: see `Release.load`; or one release is named twice.
    """
    releases: dict[str, Release] = {}
    for folder in folders:
        release = Release.load(folder)
        if release.model in releases:
            release = replace(release, model=f"{release.model}@{release.hash[:8]}")
        require(release.model not in releases, f"{folder}: the release {release.model} is named twice; name it once")
        releases[release.model] = release
    return list(releases.values())


def find_release() -> Path:
    """Return the default one of `find_releases`."""
    return find_releases()[0]


def load_backend(release: Release, params: ServeParams) -> Backend:
    """Load the model into the engine that params, or GRISTMILL_ENGINE and GRISTMILL_EXACT over them, ask for.

    Raises: ConfigError: the engine is unknown or not installed.
    """
    name = os.environ.get("GRISTMILL_ENGINE") or params.engine
    require(name in ENGINES, f"GRISTMILL_ENGINE={name!r}: allowed are {', '.join(ENGINES)}")
    installed = importlib.util.find_spec("openvino_genai") is not None
    if name == "auto" and not installed:
        log.warning("openvino_genai is not installed: serving hf/ with torch instead of the released GGUF file")
    if name == "auto":
        name = "openvino" if installed else "torch"
    require(
        name != "openvino" or installed,
        "engine 'openvino': openvino_genai is not installed; use GRISTMILL_ENGINE=torch",
    )
    backend = _load(release, params, name)
    log.info("engine %s | release %s | context %d", backend.name, release.fingerprint, release.context)
    return backend


def _load(release: Release, params: ServeParams, name: str) -> Backend:
    if name == "openvino":
        from llm.serve.openvino_backend import OpenVinoBackend

        exact = os.environ.get("GRISTMILL_EXACT", str(int(params.exact))) == "1"
        return OpenVinoBackend(release.served, release.context, exact, params.max_running)
    if name == "vllm":
        require(importlib.util.find_spec("vllm") is not None, "engine 'vllm': install it with pip install '.[vllm]'")
        from llm.serve.vllm_backend import VllmBackend

        return VllmBackend(release.folder / "hf", release.context, params.max_running)
    from llm.serve.torch_backend import TorchBackend

    return TorchBackend(release.folder / "hf")
