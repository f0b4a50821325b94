"""Which files of a Hugging Face folder are read, and the digest that makes their content a param.

No dep of dvc.yaml can be optional, so a model to start from is not one: params.yaml names its folder with a digest,
and every stage that reads the folder compares them first (`open_start`).
"""

import hashlib
import json
from pathlib import Path

from llm.config import ConfigError, InitFrom, require

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def list_weights(folder: Path) -> list[Path]:
    """Return the files that hold the weights: model.safetensors, or the shards that its index names. No pickle."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"{folder / SINGLE}: no such file; a model folder holds config.json and {SINGLE}, or {INDEX} and what it "
            f"names. Pickled weights (*.bin) are not read: write them anew with transformers' save_pretrained"
        )
    names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    require(not missing, f"{folder / INDEX}: names {', '.join(missing)}, no file of {folder}; copy the whole folder")
    return [folder / name for name in names]


def digest_folder(folder: Path) -> str:
    """Return 32 hex digits of BLAKE2b over the files that a run reads: config, tokenizer, weights."""
    files = [folder / "config.json", folder / "tokenizer.json", *list_weights(folder)]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        require(file.is_file(), f"{file}: no such file; a model to start from needs its config and tokenizer too")
        with file.open("rb") as stream:
            digest.update(f"{hashlib.file_digest(stream, 'blake2b').hexdigest()}  {file.name}\n".encode())
    return digest.hexdigest()


def open_start(start: InitFrom) -> Path:
    """Return the folder of base.init_from, or raise ConfigError when it is not what the digest says."""
    folder = Path(start.path)
    again = f"`make run INIT_FROM={start.release or start.path}`"
    require(folder.is_dir(), f"base.init_from.path: {folder} does not exist; put the folder there or run {again}")
    found = digest_folder(folder)
    require(
        found == start.digest,
        f"base.init_from: {folder} has digest {found}, params.yaml says {start.digest}: "
        f"restore the folder, or start from what it holds now with {again}",
    )
    return folder
