"""Do our figures agree with lm-evaluation-harness? On the exported folder, and through the served endpoint.

Two tasks are written from the held-out data: 200 minimal pairs and 200 questions with four options. Three sides
measure them: `python -m llm.evals`, lm_eval's `hf` on models/release/hf, and lm_eval's `local-completions` against
`python -m llm.serve` with the engine that gives exact log-probabilities. Nothing is fetched: the tasks are local
files. Fails when an accuracy differs, or a log-probability by more than 1e-3 nats per token.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {
    **{"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
    "HF_DATASETS_CACHE": str(Path(__file__).resolve().parents[1] / ".scratch" / "lm_eval"),
}

import lm_eval
import yaml
from lm_eval.tasks import TaskManager

from llm.data.schema import Question, iter_rows
from llm.evals.multiple_choice import sample_questions
from llm.evals.tasks.pydocs import list_default_tasks

ROOT = Path(__file__).resolve().parents[1]
RELEASE = Path(os.environ.get("GRISTMILL_RELEASE") or ROOT / "models" / "release").resolve()
CLEAN = ROOT / "data" / "clean"
PYTHON = ROOT / ".venv" / "bin" / "python"  # the project's own, which serves and runs llm.evals
NUM_ITEMS = 200
MAX_DIFFERENCE = 1e-3  # nats per token
START_S = 120
TASKS: dict[str, dict[str, Any]] = {
    "pairs": {"doc_to_text": "", "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0, "target_delimiter": ""},
    "choices": {
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": " ",
    },
}
Side = dict[str, list[list[float]]]  # task -> item -> log-probability [nats] of each option


def write_tasks(folder: Path) -> None:
    """Write the rows of both tasks, and lm_eval's descriptions of them."""
    (pairs,) = (task for task in list_default_tasks(CLEAN) if task.name == "minimal_pairs")
    columns = Question.schema.names
    questions = [
        Question(**{k: row[k] for k in columns})
        for row in iter_rows(CLEAN / "questions.parquet")
        if row["split"] == "val"
    ]
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"good": item.good, "bad": item.bad} for item in pairs.items[:NUM_ITEMS]],  # type: ignore[union-attr]
        "choices": [
            {"question": one.question, "options": one.options, "answer": one.answer}
            for one in sample_questions(questions, NUM_ITEMS)
        ],
    }
    for name, about in TASKS.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        description = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            **about,
            "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm")],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(description))


def measure_ours(folder: Path) -> tuple[dict[str, Any], Side, dict[str, list[list[int]]]]:
    """Accuracies, log-probabilities, and the number of tokens of each option, by `python -m llm.evals`."""
    files = [str(folder / f"{name}.jsonl") for name in TASKS]
    items = folder / "items.jsonl"
    command = [PYTHON, "-m", "llm.evals", "--model", RELEASE / "hf", "--tasks", *files, "--items", items, "--json"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)["tasks"]
    accuracy = {
        "pairs": {"acc": report["pairs"]["accuracy"]["value"]},
        "choices": {
            "acc": report["choices"]["accuracy"]["value"],
            "acc_norm": report["choices"]["accuracy_per_char"]["value"],
        },
    }
    rows = [json.loads(line) for line in items.read_text().splitlines()[1:]]
    logprobs = {name: [row["logprobs"] for row in rows if row["task"] == name] for name in TASKS}
    return accuracy, logprobs, {name: [row["num_tokens"] for row in rows if row["task"] == name] for name in TASKS}


def measure_theirs(folder: Path, backend: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Side]:
    """Accuracies and log-probabilities by one of lm_eval's models."""
    found = lm_eval.simple_evaluate(
        model=backend,
        model_args=arguments,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=16,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    wanted = {"pairs": ("acc",), "choices": ("acc", "acc_norm")}
    accuracy = {name: {key: found["results"][name][f"{key},none"] for key in keys} for name, keys in wanted.items()}
    samples = {name: sorted(found["samples"][name], key=lambda one: one["doc_id"]) for name in TASKS}
    return accuracy, {
        name: [[float(one[0]) for one in sample["filtered_resps"]] for sample in rows] for name, rows in samples.items()
    }


@contextmanager
def serve() -> Iterator[str]:
    """Run the server with the torch engine and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_urlsafe(32)
    os.environ["OPENAI_API_KEY"] = key  # lm_eval sends it
    ours = {"GRISTMILL_RELEASE": str(RELEASE), "GRISTMILL_ENGINE": "torch", "GRISTMILL_API_KEY": key}
    environment = os.environ | ours
    process = subprocess.Popen([PYTHON, "-m", "llm.serve", "--port", str(port)], cwd=ROOT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not is_ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("error: the server did not start; its messages stand above")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_ready(address: str) -> bool:
    """Say whether the server answers."""
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def compare(ours: Side, theirs: Side, num_tokens: dict[str, list[list[int]]]) -> float:
    """The largest difference [nats per token] between the log-probabilities of any option."""
    differences = []
    for name in TASKS:
        for our_row, their_row, counts in zip(ours[name], theirs[name], num_tokens[name], strict=True):
            differences += [abs(a - b) / n for a, b, n in zip(our_row, their_row, counts, strict=True)]
    return max(differences)


def main() -> None:
    """Print each side's figures, and the verdict as the last line."""
    for path in (RELEASE / "release.json", CLEAN / "questions.parquet"):
        if not path.is_file():
            sys.exit(f"error: {path}: no such file; run `make run` first")
    about = json.loads((RELEASE / "release.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        ours, our_logprobs, num_tokens = measure_ours(folder)
        sides = {"hf": measure_theirs(folder, "hf", {"pretrained": str(RELEASE / "hf"), "device": "cpu"})}
        with serve() as address:
            endpoint = {
                "model": about["model"],
                "base_url": f"{address}/v1/completions",
                "tokenizer": str(RELEASE / "hf"),
                "tokenizer_backend": "huggingface",
                "max_length": about["context"],
            }
            sides["local-completions"] = measure_theirs(folder, "local-completions", endpoint)
    differences = {key: compare(our_logprobs, theirs, num_tokens) for key, (_, theirs) in sides.items()}
    accuracies = {"llm.evals": ours, **{key: accuracy for key, (accuracy, _) in sides.items()}}
    same = all(abs(one[t][m] - ours[t][m]) < 1e-9 for one in accuracies.values() for t in ours for m in ours[t])
    verdict = {
        "accuracy": accuracies,
        "items": {name: len(rows) for name, rows in our_logprobs.items()},
        "max_difference_nats_per_token": differences,
        "agrees": same and max(differences.values()) <= MAX_DIFFERENCE,
    }
    print(json.dumps(verdict))
    sys.exit(0 if verdict["agrees"] else 1)


if __name__ == "__main__":
    main()
