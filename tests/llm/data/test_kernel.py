"""Compiled kernels: kept beside the code, shared by processes, and done without where nothing can be written."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from llm.data.text.words import split_words

ROOT = Path(__file__).parents[3]
SPLIT = """
import pyarrow as pa
from llm.data.text import words
print(len(words.split_words(pa.array(["The mill's wheel turns."])).hashes), sum(words._split.stats.cache_hits.values()))
"""


def count_words(text: str) -> int:
    return len(split_words(pa.array([text])).hashes)


def run(root: Path, **environment: str) -> list[int]:
    """Return (words, cache hits) of a fresh interpreter that finds the library in `root`."""
    command = [sys.executable, "-c", SPLIT]
    changed = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")} | environment
    done = subprocess.run(command, cwd=root, env=changed, capture_output=True, text=True, check=True, timeout=200)
    return [int(one) for one in done.stdout.split()]


def test_processes_of_a_pool_give_the_same() -> None:
    texts = ["The mill's wheel turns.", "foo(x): a/b", ""]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(count_words, texts)) == [count_words(text) for text in texts] == [6, 5, 0]


def test_what_is_compiled_is_kept_and_no_place_to_keep_it_is_no_error(tmp_path: Path) -> None:
    for folder in ("llm", "llm/data", "llm/data/text"):
        (tmp_path / folder).mkdir()
        for file in (ROOT / folder).glob("*.py"):
            shutil.copy(file, tmp_path / folder / file.name)
    assert run(tmp_path) == [6, 0]
    assert run(tmp_path) == [6, 1]
    with (tmp_path / "llm/data/text/characters.py").open("a") as table:
        table.write("# changed\n")
    assert run(tmp_path) == [6, 0]
    shutil.rmtree(tmp_path / "llm/data/text/__pycache__")
    # A file where the folder would be: nobody can write there, not even root; nor in that home folder.
    (tmp_path / "llm/data/text/__pycache__").touch()
    nowhere = str(tmp_path / "llm" / "__init__.py")
    assert run(tmp_path, HOME=nowhere, XDG_CACHE_HOME=nowhere) == [6, 0]
