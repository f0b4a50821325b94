"""Find texts that were seen before: the same words exactly, or nearly the same by MinHash.

MinHash (Broder 1997) with banding: texts that share a band of their signatures are candidates, and a
candidate counts when the estimated Jaccard similarity of the word shingles reaches the threshold. Texts are
taken in the given order; the first of its kind is kept, and each later text is compared with the kept ones
only, so that no two kept texts are near-duplicates as far as the estimate sees.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from rensa import RMinHash

from llm.config import BaseParams
from llm.data.schema import hash_id
from llm.progress import track

_WORD = re.compile(r"\w+")
CHUNK_TEXTS = 4096


class NearDuplicateParams(BaseParams):
    """How alike two texts must be for the later one to go."""

    threshold: float = Field(0.7, gt=0, le=1, description="estimated Jaccard similarity from which a text is a copy")
    num_perm: int = Field(128, ge=16, le=1024, description="length of a MinHash signature")
    bands: int = Field(
        25, ge=1, description="bands of a signature; with 5 rows each, pairs of similarity 0.7 meet in 0.99"
    )
    shingle_words: int = Field(3, ge=1, le=20, description="words per shingle")

    @model_validator(mode="after")
    def _check_bands(self) -> "NearDuplicateParams":
        if self.bands > self.num_perm:
            raise ValueError(f"bands ({self.bands}) must not exceed num_perm ({self.num_perm})")
        return self


def key_words(text: str) -> str:
    """Return the words alone, lower-case: what two texts must share to be exact duplicates."""
    return " ".join(_WORD.findall(text.lower()))


def find_exact(texts: Iterable[str]) -> list[int | None]:
    """Return for each text the place of the first with the same words, None for the first itself.

    Texts without any word are compared as they are.
    """
    first: dict[str, int] = {}
    found: list[int | None] = []
    for i, text in enumerate(texts):
        place = first.setdefault(hash_id(key_words(text) or text), i)
        found.append(None if place == i else place)
    return found


def shingle(text: str, size: int) -> list[str]:
    """Return the runs of `size` words, or all words as one run where there are fewer."""
    words = _WORD.findall(text.lower())
    if len(words) <= size:
        return [" ".join(words) or text]
    return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def sign_texts(texts: Sequence[str], params: NearDuplicateParams) -> NDArray[np.uint32]:
    """Return the MinHash signatures, one row per text."""
    rows = [np.zeros((0, params.num_perm), dtype=np.uint32)]
    for start in track(range(0, len(texts), CHUNK_TEXTS), "comparing texts"):
        shingles = [shingle(text, params.shingle_words) for text in texts[start : start + CHUNK_TEXTS]]
        matrix = RMinHash.digest_matrix_from_token_sets(shingles, params.num_perm, 1)
        rows.append(np.array(matrix.to_rows(), dtype=np.uint32))
    return np.concatenate(rows)


def find_near(texts: Sequence[str], params: NearDuplicateParams) -> list[tuple[int, float] | None]:
    """Return for each text the earlier kept one that it is most like and how much, None for a kept text.

    Args:    texts: in order of preference; the earlier of two alike is kept.
    Returns: per text, (place of the kept text, estimated Jaccard similarity in [threshold, 1]) or None.
    Source:  Broder 1997; banding as in Leskovec et al., Mining of Massive Datasets, section 3.4.
    """
    signatures = sign_texts(texts, params)
    width = params.num_perm // params.bands
    bands: list[dict[bytes, list[int]]] = [{} for _ in range(params.bands)]
    found: list[tuple[int, float] | None] = []
    for i, signature in enumerate(signatures):
        keys = [signature[b * width : (b + 1) * width].tobytes() for b in range(params.bands)]
        candidates = sorted({j for band, key in zip(bands, keys, strict=True) for j in band.get(key, ())})
        best = None
        if candidates:
            alike = (signatures[candidates] == signature).mean(axis=1)
            top = int(alike.argmax())
            best = (candidates[top], float(alike[top])) if alike[top] >= params.threshold else None
        found.append(best)
        if best is None:
            for band, key in zip(bands, keys, strict=True):
                band.setdefault(key, []).append(i)
    return found
