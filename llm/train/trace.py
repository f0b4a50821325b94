"""A learning curve on disk: one JSON object per line; part of the stage's output, so without times."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_trace(folder: Path, points: Iterable[Mapping[str, float]]) -> None:
    """Write trace.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trace.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
