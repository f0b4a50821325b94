"""Exact and near duplicates over keys and signatures on disk, and the arithmetic of the threshold."""

import ast
import random
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from llm.data.dedup import banding
from llm.data.dedup.banding import describe_threshold, drop_probability, match_probability
from llm.data.dedup.duplicates import exact_keys, find_alike, find_duplicates, find_first
from llm.data.dedup.minhash import NearDuplicateParams, shingle, sign_texts
from llm.data.dedup.signatures import SignatureStore, hash_bands

PARAMS = NearDuplicateParams()


def store_of(folder: Path, signatures: NDArray[np.uint32], params: NearDuplicateParams = PARAMS) -> SignatureStore:
    with SignatureStore(folder, params) as store:
        for batch in np.array_split(signatures, 3):
            store.append(batch)
    return store


def find_alike_in_memory(
    signatures: NDArray[np.uint32], order: NDArray[np.int64], params: NearDuplicateParams
) -> dict[int, tuple[int, float]]:
    """The greedy pass as one would write it with everything at hand."""
    bands: list[dict[bytes, list[int]]] = [{} for _ in range(params.bands)]
    found: dict[int, tuple[int, float]] = {}
    for row in order.tolist():
        keys = [signatures[row, b * params.rows : (b + 1) * params.rows].tobytes() for b in range(params.bands)]
        near = {other for band, key in zip(bands, keys, strict=True) for other in band.get(key, [])}
        alike = {other: float((signatures[other] == signatures[row]).mean()) for other in near}
        rank = {other: place for place, other in enumerate(order.tolist())}
        best = max(alike, key=lambda other: (alike[other], -rank[other]), default=None)
        if best is not None and alike[best] >= params.threshold:
            found[row] = (best, alike[best])
        else:
            for band, key in zip(bands, keys, strict=True):
                band.setdefault(key, []).append(row)
    return found


def plant_signatures(seed: int, num_perm: int) -> NDArray[np.uint32]:
    """Random signatures, and copies of them and copies of copies in which a share of the entries changed."""
    generator = np.random.default_rng(seed)
    rows = list(generator.integers(0, 2**32, (60, num_perm), dtype=np.uint32))
    for share in (0.0, 0.05, 0.1, 0.2, 0.28, 0.32, 0.4, 0.5) * 20:
        copy = rows[generator.integers(len(rows))].copy()
        changed = generator.random(num_perm) < share
        copy[changed] = generator.integers(0, 2**32, changed.sum(), dtype=np.uint32)
        rows.append(copy)
    return np.array(rows)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("params", [PARAMS, NearDuplicateParams(num_perm=64, bands=20, threshold=0.5)])
def test_the_pass_on_disk_equals_the_pass_in_memory(tmp_path: Path, seed: int, params: NearDuplicateParams) -> None:
    signatures = plant_signatures(seed, params.num_perm)
    order = np.random.default_rng(seed).permutation(len(signatures))[: len(signatures) - 10]
    expected = find_alike_in_memory(signatures, order, params)
    kept_by, similarity = find_alike(store_of(tmp_path, signatures, params), order)
    found = {row: (int(kept_by[row]), float(similarity[row])) for row in np.flatnonzero(kept_by >= 0).tolist()}
    assert found == expected
    assert 30 < len(expected) < len(order)


def test_exact_copies_name_the_first_in_the_given_order() -> None:
    texts = ["Hello, mill!", "other", "hello mill", "", "...", "", "HELLO MILL"]
    keys = exact_keys(pa.array(texts))
    assert find_first(keys, np.arange(7)).tolist() == [0, 1, 0, 3, 4, 3, 0]
    assert find_first(keys, np.array([6, 5, 4, 3, 2, 1, 0])).tolist() == [6, 1, 6, 5, 4, 5, 6]
    assert find_first(keys, np.array([2, 0])).tolist() == [2, 1, 2, 3, 4, 5, 6]  # the others take no part
    assert find_first(keys[:0], np.arange(0)).tolist() == []


def test_what_is_named_is_always_kept(tmp_path: Path) -> None:
    """An exact copy of a text that went as a near copy used to name that text, which is in no file of data/clean."""
    words = [f"word{i}" for i in range(300)]
    base, near = " ".join(words), " ".join([*words[:-2], "other", "end"])
    texts = pa.array([base, near, near.upper(), base + "!", "something else"])
    duplicates = find_duplicates(
        exact_keys(texts), store_of(tmp_path, sign_texts(texts, PARAMS)), np.arange(len(texts))
    )
    assert duplicates.kept_by.tolist() == [-1, 0, 0, 0, -1]
    assert duplicates.exact.tolist() == [False, False, False, True, False]
    assert duplicates.similarity[[0, 3, 4]].tolist() == [0, 1, 0]
    assert duplicates.similarity[1] == duplicates.similarity[2] == pytest.approx(0.985, abs=0.03)


def test_the_preferred_text_stays(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(300)]
    texts = pa.array([" ".join(words), " ".join([*words, "end"])])
    store = store_of(tmp_path, sign_texts(texts, PARAMS))
    assert find_duplicates(exact_keys(texts), store, np.array([1, 0])).kept_by.tolist() == [1, -1]


def test_no_texts_at_all(tmp_path: Path) -> None:
    texts = pa.array([], pa.string())
    store = store_of(tmp_path, sign_texts(texts, PARAMS))
    assert find_duplicates(exact_keys(texts), store, np.arange(0)).kept_by.shape == (0,)


def test_band_keys_are_equal_only_for_equal_bands() -> None:
    signatures = plant_signatures(1, 128)
    keys = hash_bands(signatures, PARAMS)
    bands = signatures[:, :125].reshape(len(signatures), 25, 5)
    for band in range(25):
        pairs = {row.tobytes() for row in bands[:, band]}
        assert len(np.unique(keys[band])) == len(pairs)
    assert len(np.unique(hash_bands(np.eye(128, dtype=np.uint32), PARAMS)[0])) == 6  # zeros and five of one bit


def test_match_probability_by_hand() -> None:
    """The example of Mining of Massive Datasets, 3.4.2: 20 bands of 5 rows."""
    assert match_probability(0.8, 20, 5) == pytest.approx(0.9996, abs=5e-5)
    assert match_probability(0.5, 20, 5) == pytest.approx(0.470, abs=5e-4)
    assert match_probability(0.2, 20, 5) == pytest.approx(0.006, abs=5e-4)


def test_drop_probability_by_hand() -> None:
    """One band of all 16 entries asks for 16 equal ones; bands of one entry ask for the threshold alone."""
    assert drop_probability(0.9, NearDuplicateParams(num_perm=16, bands=1)) == pytest.approx(0.9**16)
    loose = NearDuplicateParams(num_perm=16, bands=16, threshold=0.9)
    assert drop_probability(0.8, loose) == pytest.approx(16 * 0.8**15 * 0.2 + 0.8**16)


def test_drop_probability_is_what_the_pass_does(tmp_path: Path) -> None:
    """4,000 pairs whose entries are equal with probability s: the dropped share is within four deviations."""
    generator = np.random.default_rng(5)
    for number, similarity in enumerate((0.6, 0.65, 0.7, 0.75)):
        base = generator.integers(0, 2**32, (4000, 128), dtype=np.uint32)
        equal = generator.random(base.shape) < similarity
        copies = np.where(equal, base, generator.integers(0, 2**32, base.shape, dtype=np.uint32))
        store = store_of(tmp_path / str(number), np.concatenate([base, copies]))
        kept_by, _ = find_alike(store, np.arange(8000))
        expected = drop_probability(similarity, PARAMS)
        assert (kept_by[4000:] >= 0).mean() == pytest.approx(
            expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5
        )


def test_the_table_in_the_words_is_what_the_code_gives() -> None:
    described = describe_threshold(PARAMS)
    lines = (banding.__doc__ or "").splitlines()
    meet = next(line.split()[1:] for line in lines if line.split()[:1] == ["meet"])
    dropped = next(line.split()[1:] for line in lines if line.split()[:1] == ["dropped"])
    assert [f"{value:.3f}" for value in described["meet"].values()] == meet
    assert [f"{drop_probability(s, PARAMS):.1e}" for s in banding.SIMILARITIES] == dropped


def read_docstrings(num_texts: int) -> list[str]:
    """Different docstrings of 60 words and more from the standard library, in the order of its files."""
    texts: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= 60:
                    texts[text] = None
    return list(texts)[:num_texts]


def edit(text: str, share: float, generator: random.Random, vocabulary: list[str]) -> str:
    """Return a copy in which a share of the words was substituted, deleted, inserted, or moved in blocks."""
    words = text.split()
    for kind in generator.choices(("substitute", "delete", "insert", "move"), k=round(share * len(words))):
        place = generator.randrange(len(words))
        if kind == "substitute":
            words[place] = generator.choice(vocabulary)
        elif kind == "delete":
            del words[place]
        elif kind == "insert":
            words.insert(place, generator.choice(vocabulary))
        else:
            block = words[place : place + 20]
            del words[place : place + 20]
            target = generator.randrange(len(words) + 1)
            words[target:target] = block
    return " ".join(words)


def jaccard(one: str, other: str) -> float:
    a, b = set(shingle(one, 3)), set(shingle(other, 3))
    return len(a & b) / len(a | b)


def test_planted_copies_of_real_text(tmp_path: Path) -> None:
    """Copies of docstrings with 0-30 % of the words edited: recall at Jaccard 0.85, false merges of all pairs."""
    generator = random.Random(7)
    originals = read_docstrings(500)
    vocabulary = sorted({word for text in originals for word in text.split()})
    copies = [edit(text, share / 100, generator, vocabulary) for share in range(31) for text in originals[share::5]]
    owners = [text for share in range(31) for text in originals[share::5]]
    texts = pa.array([*originals, *copies])
    store = store_of(tmp_path, sign_texts(texts, PARAMS))
    kept_by, _ = find_alike(store, np.arange(len(texts)))
    true = np.array([jaccard(text, copy) for text, copy in zip(owners, copies, strict=True)])
    places = {text: place for place, text in enumerate(originals)}
    kept_owner = np.array([kept_by[places[text]] < 0 for text in owners])  # some docstrings are copies of others
    near = (true >= 0.85) & kept_owner
    recall = (kept_by[len(originals) :] >= 0)[near].mean()
    # Any two texts could be merged; those that were are looked at, and the planted pairs are the hard ones of all.
    merged = [(texts[row].as_py(), texts[int(kept_by[row])].as_py()) for row in np.flatnonzero(kept_by >= 0).tolist()]
    false = sum(jaccard(*pair) < PARAMS.threshold - 0.15 for pair in merged)
    planted, pairs = int((true < PARAMS.threshold - 0.15).sum()), len(texts) * (len(texts) - 1) // 2
    print(
        f"recall {recall:.4f} of {near.sum()} copies of Jaccard 0.85 and more; {false} of {len(merged)} merged pairs "
    )
    print(f"have less than 0.55, of {pairs} pairs in all, {planted} of them planted below 0.55")
    assert near.sum() > 300
    assert planted > 1500
    assert recall >= 0.95
    assert false <= planted / 10_000


def test_the_estimate_is_as_good_as_the_arithmetic_takes_for_granted() -> None:
    """Over pairs of real text: no bias, no more than the binomial's variance, and bands that meet as s**r says."""
    generator = random.Random(11)
    originals = read_docstrings(400)
    vocabulary = sorted({word for text in originals for word in text.split()})
    copies = [edit(text, generator.random() * 0.3, generator, vocabulary) for text in originals]
    true = np.array([jaccard(text, copy) for text, copy in zip(originals, copies, strict=True)])
    one, other = sign_texts(pa.array(originals), PARAMS), sign_texts(pa.array(copies), PARAMS)
    equal = one == other
    error = equal.mean(axis=1) - true
    variance = true * (1 - true) / PARAMS.num_perm
    bands = equal[:, : PARAMS.bands * PARAMS.rows].reshape(len(true), PARAMS.bands, PARAMS.rows).all(axis=2)
    print(f"bias {error.mean():.4f}, variance {(error**2).sum() / variance.sum():.3f} of the binomial's, ", end="")
    print(f"bands {bands.mean():.4f}, expected {(true**PARAMS.rows).mean():.4f}")
    assert abs(error.mean()) < 4 * (variance.sum() ** 0.5) / len(true)
    assert (error**2).sum() < 1.3 * variance.sum()  # 400 squares: one deviation is 0.07
    assert bands.mean() == pytest.approx((true**PARAMS.rows).mean(), rel=0.1)


def test_pairs_are_judged_as_their_exact_similarity_says(tmp_path: Path) -> None:
    """Outside of the estimate's own error, which is three deviations at 128 hashes."""
    generator = random.Random(3)
    words = [f"word{i}" for i in range(3000)]
    texts = []
    for changes in (0, 1, 2, 4, 12, 30, 60):
        base = generator.choices(words, k=120)
        copy = list(base)
        for place in generator.sample(range(120), changes):
            copy[place] = generator.choice(words)
        texts += [" ".join(base), " ".join(copy)]
    kept_by, similarity = find_alike(store_of(tmp_path, sign_texts(pa.array(texts), PARAMS)), np.arange(len(texts)))
    for i in range(0, len(texts), 2):
        exact = jaccard(texts[i], texts[i + 1])
        if exact > PARAMS.threshold + 0.12:
            assert kept_by[i + 1] == i
            assert similarity[i + 1] == pytest.approx(exact, abs=0.12)
        if exact < PARAMS.threshold - 0.12:
            assert kept_by[i + 1] == -1
    assert (kept_by[::2] == -1).all()


def test_each_copy_names_a_text_that_is_kept(tmp_path: Path) -> None:
    base = " ".join(f"word{i}" for i in range(200))
    texts = pa.array([base, base + " end", base + " end of it", "quite another text, of its own"])
    assert find_alike(store_of(tmp_path, sign_texts(texts, PARAMS)), np.arange(4))[0].tolist() == [-1, 0, 0, -1]


def test_more_bands_than_hashes_is_refused() -> None:
    with pytest.raises(ValueError, match="bands"):
        NearDuplicateParams(num_perm=16, bands=17)
