"""Signatures on disk: written once in the order of arrival, read by row, with one file of keys per band.

A text costs 4 bytes per signature entry and 8 per band (712 with the defaults), all of it on disk. Whoever
compares reads one band's keys at a time (8 bytes per text in memory), and signatures of candidates only.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from llm.data.dedup.minhash import NearDuplicateParams


def hash_bands(signatures: NDArray[np.uint32], params: NearDuplicateParams) -> NDArray[np.uint64]:
    """Return a 64-bit key for each band of each signature, band by band: shape (bands, texts)."""
    bands = signatures[:, : params.bands * params.rows].reshape(-1, params.bands, params.rows)
    keys = np.zeros((params.bands, len(signatures)), dtype=np.uint64)
    for row in range(params.rows):
        keys ^= bands[:, :, row].T
        keys *= np.uint64(0x9E3779B97F4A7C15)  # odd, so that no two keys fall together here; wraps at 2**64
        keys ^= keys >> np.uint64(32)
    return keys


class SignatureStore:
    """Appends signatures to files of a scratch folder; after `close` reads them again by row or by band."""

    def __init__(self, folder: Path, params: NearDuplicateParams) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.params, self.num_texts = params, 0
        self._path = folder / "signatures.u32"
        self._bands = [folder / f"band-{band:03d}.u64" for band in range(params.bands)]
        self._files = [path.open("wb") for path in (self._path, *self._bands)]

    def append(self, signatures: NDArray[np.uint32]) -> None:
        """Add the signatures of a batch of texts, shape (texts, num_perm)."""
        assert signatures.dtype == np.uint32, signatures.dtype
        assert signatures.shape[1:] == (self.params.num_perm,), signatures.shape
        for file, rows in zip(self._files, (signatures, *hash_bands(signatures, self.params)), strict=True):
            file.write(np.ascontiguousarray(rows).data)
        self.num_texts += len(signatures)

    def close(self) -> None:
        """End writing; the files stay for reading until their folder is removed."""
        for file in self._files:
            file.close()

    def __enter__(self) -> "SignatureStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def band(self, number: int) -> NDArray[np.uint64]:
        """Return every text's key of one band."""
        return np.fromfile(self._bands[number], dtype=np.uint64)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the signatures of some texts, shape (len(rows), num_perm).

        Not a memory map: the pages of one count as this process's memory, and each look maps many of them.
        """
        found = np.empty((len(rows), self.params.num_perm), dtype=np.uint32)
        with self._path.open("rb", buffering=0) as file:
            for row, into in zip(rows.tolist(), found, strict=True):
                file.seek(row * found.itemsize * self.params.num_perm)
                read = file.readinto(into.data)
                assert read == into.nbytes, f"{self._path}: row {row} is not whole"
        return found
