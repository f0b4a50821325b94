"""Our cleaning against datatrove's: normal form, Gopher's quality and repetition rules, MinHash, on `pydocs`.

Both sides read the same parquet files and write survivors and signatures, two processes each, one file at a time;
what a process does once (imports, compiling, loading a tokenizer) is done before the clock starts. datatrove runs its
GopherQualityFilter, GopherRepetitionFilter and MinhashDedupSignature with their defaults, and no normal form; where
the whole corpus would take it too long it gets the first files of it, in hashed order, and the output says how much.
A text that one step drops is not seen by the next, on both sides; `gristmill_every_step_mb_s` is our rate without that.
Last line: JSON with gristmill_mb_s (median of three rounds), datatrove_mb_s, their ratio, verdict_agreement (share of
texts that both keep or both drop) and dedup_recall (planted copies of Jaccard similarity 0.85 and more that are found).
"""

import argparse
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm.data.dedup.duplicates import find_alike
from llm.data.dedup.minhash import NearDuplicateParams, shingle, sign_texts
from llm.data.dedup.signatures import SignatureStore
from llm.data.filters.judge import FilterParams, judge_texts
from llm.data.text.normalise import normalise_texts
from llm.progress import track

PART_BYTES = 2_000_000
PROCESSES = 2
PEER_SECONDS = 300
NEAR = NearDuplicateParams()
FILTERS = FilterParams.model_validate(
    {"simple": {"enabled": False}, "gopher_quality": {"enabled": True}, "gopher_repetition": {"enabled": True}}
)
# What each rule is called over there.
NAMES = {
    "gopher_short_doc": "min_words", "gopher_long_doc": "max_words",
    "gopher_below_avg_threshold": "min_mean_word_chars",
    "gopher_above_avg_threshold": "max_mean_word_chars", "gopher_too_many_hashes": "max_hash_ratio",
    "gopher_too_many_ellipsis": "max_ellipsis_ratio", "gopher_too_many_bullets": "max_bullet_lines",
    "gopher_too_many_end_ellipsis": "max_ellipsis_lines", "gopher_below_alpha_threshold": "min_alpha_words",
    "gopher_enough_stop_words": "min_stop_words", "dup_para_frac": "max_duplicate_paragraphs",
    "dup_para_char_frac": "max_duplicate_paragraph_chars", "dup_line_frac": "max_duplicate_lines",
    "dup_line_char_frac": "max_duplicate_line_chars",
    **{f"top_{n}_gram": f"max_top_{n}_gram" for n in range(2, 5)},
    **{f"duplicated_{n}_n_grams": f"max_duplicate_{n}_grams" for n in range(5, 11)},
}  # fmt: skip


def write_corpus(target: Path) -> None:
    """Write `pydocs` in hashed order, cut into files; runs in the project's own venv, whose packages it reads."""
    from llm.data.builtin.pydocs import build_documents, read_pydocs
    from llm.data.schema import hash_id

    documents = build_documents(read_pydocs(Path("requirements.lock"), 1.0, PROCESSES), "pydocs")
    unique = {one.id: one.text for one in documents}
    rows = sorted(unique.items(), key=lambda row: hash_id("order", row[0]))
    target.mkdir(parents=True)
    part: list[tuple[str, str]] = []
    size = number = 0
    for place, row in enumerate(rows):
        part.append(row)
        size += len(row[1].encode())
        if size >= PART_BYTES or place == len(rows) - 1:
            ids, texts = zip(*part, strict=True)
            pq.write_table(pa.table({"id": ids, "text": texts}), target / f"{number:03}.parquet", compression="zstd")
            part, size, number = [], 0, number + 1


def list_parts(folder: Path) -> list[Path]:
    """Return the files of the corpus; it is made once, by the project's own interpreter."""
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print("reading the docstrings (minutes, once)", file=sys.stderr)
        subprocess.run([".venv/bin/python", "-m", "benchmarks.clean", "--write-corpus", folder], check=True)
        (folder / "done").touch()
    return sorted(folder.glob("*.parquet"))


def measure_bytes(parts: list[Path]) -> int:
    """Return the bytes of text in the files."""
    return sum(len(text.encode()) for part in parts for text in pq.read_table(part)["text"].to_pylist())


def clean_part(part: Path, out: Path) -> dict[str, str]:
    """Run our side on one file: write survivors and signatures, return the reason for each text that was dropped."""
    table = pq.read_table(part)
    texts = normalise_texts(table["text"].combine_chunks())
    verdicts = judge_texts(texts, FILTERS)
    kept = pa.array([i for i, verdict in enumerate(verdicts) if verdict is None], pa.int64())
    texts = texts.take(kept)
    pq.write_table(pa.table({"id": table["id"].take(kept), "text": texts}), out / part.name, compression="zstd")
    np.save(out / f"{part.stem}.npy", sign_texts(texts, NEAR))
    ids = table["id"].to_pylist()
    return {name: verdict[0].rpartition(".")[2] for name, verdict in zip(ids, verdicts, strict=True) if verdict}


def clean_part_whole(part: Path, out: Path) -> dict[str, str]:
    """Run every step of our side on every text, also on those that an earlier step has dropped."""
    texts = normalise_texts(pq.read_table(part)["text"].combine_chunks())
    for section in ("gopher_quality", "gopher_repetition"):
        judge_texts(texts, FilterParams.model_validate({"simple": {"enabled": False}, section: {"enabled": True}}))
    pq.write_table(pa.table({"text": texts}), out / part.name, compression="zstd")
    np.save(out / f"{part.stem}.npy", sign_texts(texts, NEAR))
    return {}


def clean_part_there(part: Path, out: Path) -> dict[str, str]:
    """Run datatrove's side on one file; as above."""
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    dropped = ParquetWriter(str(out / "dropped" / part.stem), compression="zstd")
    steps = [
        ParquetReader(str(part.parent), glob_pattern=part.name),
        GopherQualityFilter(exclusion_writer=dropped),
        GopherRepetitionFilter(exclusion_writer=ParquetWriter(str(out / "repeated" / part.stem), compression="zstd")),
        ParquetWriter(str(out / "kept" / part.stem), compression="zstd"),
        MinhashDedupSignature(str(out / "signatures" / part.stem)),
    ]
    documents = None
    for step in steps:
        documents = step.run(documents, 0, 1)
    deque(documents or (), maxlen=0)
    reasons = {}
    for file in [*(out / "dropped" / part.stem).glob("*"), *(out / "repeated" / part.stem).glob("*")]:
        table = pq.read_table(file, columns=["id", "metadata"]).to_pylist()
        reasons.update({row["id"]: NAMES[row["metadata"]["filter_reason"]] for row in table})
    return reasons


def warm(clean: Callable[[Path, Path], dict[str, str]], part: Path) -> None:
    """Do once what a process does once: import, compile, load tables."""
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / part.name
        pq.write_table(pq.read_table(part).slice(0, 100), few)
        clean(few, Path(folder))
    if clean is clean_part_there:
        from loguru import logger

        logger.remove()  # a line per file


def run_side(
    clean: Callable[[Path, Path], dict[str, str]], parts: list[Path], name: str
) -> tuple[float, dict[str, str]]:
    """Return seconds and reasons by id, with two processes that have done what they do once."""
    with tempfile.TemporaryDirectory(dir=parts[0].parents[1]) as folder:
        barrier = get_context("fork").Barrier(PROCESSES + 1)
        with get_context("fork").Pool(PROCESSES, enter, (clean, parts[0], barrier)) as pool:
            barrier.wait(timeout=600)
            started = time.perf_counter()
            jobs = [(clean, part, Path(folder)) for part in parts]
            reasons: dict[str, str] = {}
            for one in track(pool.imap_unordered(call, jobs), name, total=len(jobs)):
                reasons.update(one)
            seconds = time.perf_counter() - started
    return seconds, reasons


def enter(clean: Callable[[Path, Path], dict[str, str]], part: Path, barrier: Barrier) -> None:
    """Prepare a process, then wait for the others; if that fails, say so and free those that wait."""
    try:
        warm(clean, part)
    except BaseException:
        barrier.abort()
        raise
    barrier.wait(timeout=600)


def call(job: tuple[Callable[[Path, Path], dict[str, str]], Path, Path]) -> dict[str, str]:
    """Run one side on one file."""
    clean, part, out = job
    return clean(part, out)


def measure_recall(part: Path, num_copies: int = 1000) -> tuple[float, int, int]:
    """Return (share found, planted) of copies with 0-30 % of words changed whose exact similarity is 0.85 or more,
    and the number of false merges: texts merged with one that is less than half like them."""
    generator = random.Random(11)
    texts = normalise_texts(pq.read_table(part)["text"].combine_chunks()).to_pylist()
    bases = [one for one in texts if len(one.split()) >= 60][:num_copies]
    copies = []
    for base in bases:
        words = base.split()
        for place in generator.sample(range(len(words)), int(len(words) * generator.uniform(0, 0.3) ** 2)):
            words[place] = generator.choice(("mill", "river", "wheel", "stone", "grain")) + str(place)
        copies.append(" ".join(words))

    def jaccard(one: str, other: str) -> float:
        a, b = set(shingle(one, NEAR.shingle_words)), set(shingle(other, NEAR.shingle_words))
        return len(a & b) / len(a | b)

    both = bases + copies
    with tempfile.TemporaryDirectory() as folder:
        with SignatureStore(Path(folder), NEAR) as store:
            store.append(sign_texts(pa.array(both), NEAR))
        found = find_alike(store, np.arange(len(both)))[0].tolist()
    planted = [i for i, (a, b) in enumerate(zip(bases, copies, strict=True)) if jaccard(a, b) >= 0.85]
    merged = sum(found[len(bases) + i] >= 0 for i in planted)
    false = sum(one >= 0 and jaccard(both[one], both[i]) < 0.5 for i, one in enumerate(found))
    return merged / len(planted), len(planted), false


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-seconds", type=float, default=PEER_SECONDS, help="about how long datatrove may take")
    parser.add_argument("--corpus", type=Path, default=Path(".scratch/bench/clean/corpus"))
    parser.add_argument("--write-corpus", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_corpus:
        return write_corpus(arguments.write_corpus)
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parts = list_parts(arguments.corpus)
    megabytes = measure_bytes(parts) / 1e6
    print(f"corpus: {megabytes:.1f} MB in {len(parts)} files; {PROCESSES} processes on each side")

    ours = [run_side(clean_part, parts, "gristmill") for _ in range(3)]
    rate = megabytes / statistics.median(seconds for seconds, _ in ours)
    print(f"gristmill: {', '.join(f'{megabytes / seconds:.1f}' for seconds, _ in ours)} MB/s")
    whole_rate = megabytes / run_side(clean_part_whole, parts, "gristmill, every step on every text")[0]
    print(f"gristmill, every step on every text, nothing dropped in between: {whole_rate:.1f} MB/s")

    probe = parts[: 2 * PROCESSES]
    seconds, _ = run_side(clean_part_there, probe, "datatrove, probe")
    num_parts = min(len(parts), max(len(probe), int(arguments.peer_seconds / seconds * len(probe))))
    there_megabytes = measure_bytes(parts[:num_parts]) / 1e6
    seconds, theirs = run_side(clean_part_there, parts[:num_parts], "datatrove")
    there_rate = there_megabytes / seconds
    print(f"datatrove: {there_rate:.2f} MB/s on {there_megabytes:.1f} MB ({num_parts} of {len(parts)} files)")

    ids = [one for part in parts[:num_parts] for one in pq.read_table(part)["id"].to_pylist()]
    here = ours[0][1]
    pairs = Counter((here.get(one, "kept"), theirs.get(one, "kept")) for one in ids)
    agreed = sum(count for (a, b), count in pairs.items() if (a == "kept") == (b == "kept"))
    for (a, b), count in sorted(pairs.items(), key=lambda pair: -pair[1]):
        print(f"{count:7} gristmill {a:30} datatrove {b}{'' if (a == 'kept') == (b == 'kept') else '   <- differs'}")
    recall, planted, false = measure_recall(parts[0])
    print(f"dedup: {recall:.4f} of {planted} planted copies found, {false} false merges")
    result = {
        "gristmill_mb_s": round(rate, 2),
        "datatrove_mb_s": round(there_rate, 3),
        "ratio": round(rate / there_rate, 1),
        "verdict_agreement": round(agreed / len(ids), 5),
        "dedup_recall": round(recall, 4),
        "gristmill_every_step_mb_s": round(whole_rate, 2),
        "megabytes": round(megabytes, 1),
        "datatrove_megabytes": round(there_megabytes, 1),
        "texts_compared": len(ids),
        "processes": PROCESSES,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
