"""Checkpoints that a kill cannot spoil: written aside, fsynced, renamed, verified on load.

A file holds tensors and one JSON string (step and learning curve) in safetensors; no pickle.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

log = logging.getLogger(__name__)
KEEP = 2  # the newest, and the one before it in case the newest is damaged


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Path:
    """Write `step-NNNNNNNN.safetensors` durably and drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.safetensors"
    partial = path.with_suffix(".partial")
    blob = save(
        {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()},
        metadata={"extra": json.dumps(extra)},
    )
    with partial.open("wb") as stream:
        stream.write(blob)
        stream.write(hashlib.blake2b(blob, digest_size=32).digest())
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEEP]:
        old.unlink()
    return path


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Return (step, tensors, extra) of the newest intact checkpoint, or None."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        content = path.read_bytes()
        blob, digest = content[:-32], content[-32:]
        if hashlib.blake2b(blob, digest_size=32).digest() != digest:
            log.warning("%s is damaged; falling back to the checkpoint before it", path.name)
            continue
        return int(path.stem.split("-")[1]), *_read(blob)
    return None


def _read(blob: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    return load(blob), json.loads(header["__metadata__"]["extra"])
