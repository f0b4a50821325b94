"""Checkpoints that a kill cannot spoil: written aside, fsynced, renamed, verified on load.

A file is plain safetensors, its metadata one JSON string, its name `step-NNNNNNNN-DIGEST.safetensors`: what was read
back is what was written, or the one before it is taken. No pickle.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)
KEEP = 2  # the newest, and the one before it in case the newest is damaged


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any], keep: int | None = None
) -> Path:
    """Write a checkpoint durably, and drop all but the newest two and that of step `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob("*.partial"):  # of a process that was killed while it wrote
        abandoned.unlink()
    partial = folder / f"step-{step:08d}.partial"
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial, {"extra": json.dumps(extra)}
    )
    with partial.open("rb") as stream:
        digest = hashlib.file_digest(stream, _digest).hexdigest()
        os.fsync(stream.fileno())
    path = folder / f"step-{step:08d}-{digest}.safetensors"
    os.replace(partial, path)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    for old in list_checkpoints(folder)[:-KEEP]:
        if step_of(old) != keep:
            old.unlink()
    return path


def load_checkpoint(
    folder: Path, fits: Callable[[int, dict[str, Any]], bool] = lambda step, extra: True
) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Return (step, tensors, extra) of the newest intact checkpoint for which `fits(step, extra)` holds, or None."""
    for path in reversed(list_checkpoints(folder)):
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, _digest).hexdigest() != path.stem.rpartition("-")[2]:
                log.warning("%s is damaged; falling back to the checkpoint before it", path)
                continue
        with safe_open(path, "pt") as content:
            extra = json.loads(content.metadata()["extra"])
            if fits(step_of(path), extra):
                return step_of(path), {name: content.get_tensor(name) for name in content.keys()}, extra  # noqa: SIM118
    return None


def keep_only(folder: Path, step: int) -> None:
    """Drop all checkpoints but that of `step`: the run has ended."""
    for path in list_checkpoints(folder):
        if step_of(path) != step:
            path.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the files, oldest step first."""
    return sorted(folder.glob("step-*.safetensors"))


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.stem.split("-")[1])


def _digest() -> Any:
    return hashlib.blake2b(digest_size=16)
