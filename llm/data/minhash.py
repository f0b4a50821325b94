"""MinHash signatures of texts (Broder 1997): two signatures agree in about the share of word shingles in common."""

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator
from rensa import RMinHash

from llm.config import BaseParams

_WORD = re.compile(r"\w+")


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

    @property
    def rows(self) -> int:
        """Return how many entries of a signature make a band; entries left over count for the estimate alone."""
        return self.num_perm // self.bands


def shingle(text: str, size: int) -> list[str]:
    """Return the runs of `size` words, or all words as one run where there are fewer."""
    words = _WORD.findall(text.lower())
    if len(words) <= size:
        return [" ".join(words) or text]
    return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def sign_texts(texts: pa.StringArray, params: NearDuplicateParams) -> NDArray[np.uint32]:
    """Return the MinHash signatures, one row of `num_perm` entries per text."""
    if not len(texts):
        return np.zeros((0, params.num_perm), dtype=np.uint32)
    shingles = [shingle(text, params.shingle_words) for text in texts.to_pylist()]
    matrix = RMinHash.digest_matrix_from_token_sets(shingles, params.num_perm, 1)
    return np.array(matrix.to_rows(), dtype=np.uint32)
