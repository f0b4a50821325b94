"""Resident memory of the data plane on a large input: ingest, clean, validate, tokenize, each sampled while it runs.

The input is made up: paragraphs of Python's own help topics in which 60 % of the words are drawn anew, so that the
documents are as long and as varied as real ones but no two are near-duplicates. A tenth is repeated on purpose.
The figure is the largest sum over a stage's processes of the proportional set size (pages that n processes
share count 1/n each), sampled four times a second. `SIZE_MB` (default 2000) and `SCRATCH` (a folder) may be set.
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parents[1]
SIZE_MB = int(os.environ.get("SIZE_MB", "2000"))
STAGES = (["ingest", "corpus"], ["ingest", "chat"], ["clean"], ["validate"], ["tokenize"])


def write_input(path: Path, size_bytes: int) -> None:
    """Write JSONL documents of 200 to 20,000 characters until the size is reached."""
    generator = random.Random(7)
    paragraphs = [part.split() for text in topics.values() for part in text.split("\n\n") if len(part.split()) > 8]
    words = sorted({word for paragraph in paragraphs for word in paragraph})
    written, old = 0, ""
    with path.open("w", encoding="utf8") as stream:
        while written < size_bytes:
            if old and generator.random() < 0.1:
                line = old
            else:
                chosen = generator.choices(paragraphs, k=min(1 + int(generator.expovariate(0.15)), 60))
                text = "\n\n".join(
                    " ".join(word if generator.random() > 0.6 else generator.choice(words) for word in one)
                    for one in chosen
                )
                line = json.dumps({"text": text, "id": written}) + "\n"
                old = line if generator.random() < 0.01 else old
            stream.write(line)
            written += len(line)


def sum_memory(pid: int) -> int:
    """Return the proportional set size of a process and its children, in bytes; 0 once it has ended."""
    total = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(sum_memory(int(child)) for child in (task / "children").read_text().split())
    except (OSError, StopIteration):
        pass
    return total


def run_stage(arguments: list[str], project: Path) -> tuple[float, int]:
    """Run one stage; return its seconds and its largest memory."""
    started, peak = time.monotonic(), 0
    command = [str(ROOT / ".venv/bin/python"), "-m", f"stages.{arguments[0]}", *arguments[1:]]
    environment = {**os.environ, "GX_ANALYTICS_ENABLED": "false", "MLFLOW_TRACKING_URI": ""}
    with subprocess.Popen(command, cwd=project, env=environment) as process:
        done = threading.Event()

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.25):
                peak = max(peak, sum_memory(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        code = process.wait()
        done.set()
        sampler.join()
    if code:
        raise SystemExit(f"stage {' '.join(arguments)} failed")
    return time.monotonic() - started, peak


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="gristmill-memory-", dir=os.environ.get("SCRATCH")))
    try:
        print(f"writing {SIZE_MB} MB ...", flush=True)
        write_input(folder / "corpus.jsonl", SIZE_MB * 1_000_000)
        project = folder / "project"
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in files.splitlines():
            if (ROOT / name).is_file() and not name.startswith(("tests/", "reports/")):
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, project / name, follow_symlinks=False)
        recipe = [str(ROOT / ".venv/bin/python"), "-m", "stages.plumbing.recipe", "--recipe", "smoke"]
        subprocess.run([*recipe, "--source", str(folder / "corpus.jsonl")], cwd=project, check=True)
        rows = {}
        for arguments in STAGES:
            seconds, peak = run_stage(arguments, project)
            name = " ".join(arguments)
            rows[name] = {"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6)}
            print(f"{name:16} {seconds:8.1f} s {peak / 1e6:8.0f} MB", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    peak_mb = max(row["peak_mb"] for row in rows.values())
    print(json.dumps({"input_mb": SIZE_MB, "peak_mb": peak_mb, "stages": rows}))


if __name__ == "__main__":
    main()
