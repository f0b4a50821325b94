"""Checkpoints that N ranks write and M ranks read: each rank writes a part, whole fp32 tensors under global names.

A tensor stands in one part only, unsharded, as one process would hold it; so the number of ranks and the way in which
they share the model may change between saving and loading. safetensors and JSON, no pickle. A folder `ranks-NNNNNNNN`
gets its name when every part is on disk; a damaged one falls back to the one before it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)
KEEP = 2
INDEX = "index.json"


class Parts(NamedTuple):
    """An intact checkpoint; tensors are read from disk when asked for."""

    folder: Path
    step: int
    extra: dict[str, Any]
    places: dict[str, str]

    def tensor(self, name: str) -> Tensor:
        """Return one whole tensor."""
        with safe_open(self.folder / self.places[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def save_parts(folder: Path, step: int, tensors: dict[str, Tensor], extra: dict[str, Any], keep: int) -> None:
    """Write one checkpoint, and drop all but the newest two and that of step `keep`.

    Every rank must call it, each with its own tensors, on a folder that all of them see.
    """
    rank, final = dist.get_rank(), folder / f"ranks-{step:08d}"
    partial = final.with_suffix(".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    path = partial / f"part-{rank:05d}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    _sync(path)
    mine = (path.name, _digest(path), sorted(tensors))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    if rank == 0:
        index = {
            "step": step,
            "extra": extra,
            "digests": {name: digest for name, digest, _ in everyone},
            "places": {tensor: name for name, _, names in everyone for tensor in names},
        }
        (partial / INDEX).write_text(json.dumps(index))
        _sync(partial / INDEX)
        shutil.rmtree(final, ignore_errors=True)  # a step that is written again has the same content
        os.replace(partial, final)
        _sync(folder)
        for old in list_parts(folder)[:-KEEP]:
            if old != folder / f"ranks-{keep:08d}":
                shutil.rmtree(old)
    dist.barrier()


def open_parts(folder: Path, fits: Callable[[int, dict[str, Any]], bool] = lambda step, extra: True) -> Parts | None:
    """Return the newest intact checkpoint for which `fits(step, extra)` holds, or None.

    Where ranks are running, all of them must call it: they share the check.
    """
    for path in reversed(list_parts(folder)):
        index = _read_index(path)
        if not _all_agree(index is not None and _is_intact(path, index["digests"])):
            log.warning("%s is damaged; falling back to the checkpoint before it", path.name)
            continue
        assert index is not None
        if fits(index["step"], index["extra"]):
            return Parts(path, index["step"], index["extra"], index["places"])
    return None


def keep_only_parts(folder: Path, step: int) -> None:
    """Drop all checkpoints but that of `step`: the run has ended."""
    for path in list_parts(folder):
        if path != folder / f"ranks-{step:08d}":
            shutil.rmtree(path)


def list_parts(folder: Path) -> list[Path]:
    """Return the checkpoints, oldest step first."""
    return sorted(folder.glob("ranks-????????"))


def _read_index(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((path / INDEX).read_text()))
    except (OSError, ValueError):
        return None


def _is_intact(path: Path, digests: dict[str, str]) -> bool:
    """Check this rank's share of the parts."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = sorted(digests)[rank::world]
    return all((path / name).is_file() and _digest(path / name) == digests[name] for name in mine)


def _all_agree(intact: bool) -> bool:
    if not dist.is_initialized():
        return intact
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, intact)
    return all(everyone)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
