"""Which items stand in the training text: those of which a long word n-gram occurs there.

The n-grams are those by which training text is cleaned of evaluation sets: 13 words, or all of an item of 8 to 12;
without templates that many items share and runs of numbers and function words. One match marks an item, as in GPT-3
(arXiv:2005.14165, appendix C): what is called clean here is clean, what is called contaminated may be a quotation.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llm.config import require
from llm.data.cleaner import list_texts
from llm.data.dedup.decontaminate import find_hits
from llm.data.dedup.evaluation_index import DecontaminateParams, EvaluationIndex, EvaluationText, build_index
from llm.data.dedup.ngrams import hash_ngrams, hash_words
from llm.data.schema import iter_batches
from llm.evals.tasks.items import Item
from llm.progress import track

KINDS = ("documents", "conversations", "preferences")
Seen = dict[int, NDArray[np.bool_]]  # by n-gram length: does the index's n-gram stand in the training text?


def find_contaminated(items: Sequence[Item], clean: Path) -> set[str]:
    """Return the ids of the items that the training split of a cleaned corpus holds a passage of.

    Raises:  ConfigError: the folder is no output of `clean`.
    """
    texts = [(item.id, text) for item in items for text in item.texts]
    index = build_index((EvaluationText(name, "", text) for name, text in texts), DecontaminateParams())
    seen: Seen = {size: np.zeros(len(table.hashes), dtype=np.bool_) for size, table in index.grams.items()}
    for batch in track(read_training_texts(clean), "looking for items in the training text"):
        hits = find_hits(batch, index)
        for size, marks in seen.items():
            marks[hits.grams[hits.sizes == size]] = True
    words, offsets = hash_words(pa.array([text for _, text in texts], pa.string()))
    spans = zip(offsets[:-1], offsets[1:], strict=True)
    return {name for (name, _), (a, b) in zip(texts, spans, strict=True) if _is_seen(words[a:b], index, seen)}


def _is_seen(hashes: NDArray[np.uint64], index: EvaluationIndex, seen: Seen) -> bool:
    """Whether an n-gram of an item's words stands in the training text."""
    size = min(len(hashes), max(index.grams, default=0))
    table = index.grams.get(size)
    if table is None or not len(table.hashes):
        return False
    grams = hash_ngrams(hashes, size)
    places = np.minimum(np.searchsorted(table.hashes, grams), len(table.hashes) - 1)
    return bool(((table.hashes[places] == grams) & seen[size][places] & table.content[places]).any())


def read_training_texts(clean: Path) -> Iterator[pa.StringArray]:
    """Yield the texts that training stages read, batch by batch."""
    files = [clean / f"{kind}.parquet" for kind in KINDS]
    require(
        all(file.is_file() for file in files),
        f"{clean}: lacks {', '.join(file.name for file in files if not file.is_file())}; name the folder that the "
        f"stage clean wrote, such as data/clean",
    )
    for kind, file in zip(KINDS, files, strict=True):
        for batch in iter_batches(file):
            table = pa.table(batch)
            yield list_texts(kind, table.filter(pc.equal(table["split"], "train")))
