"""What a corpus looks like in some 300 figures, and how far it has drifted from the one last released.

    python -m llm.data.checks.profile --accept    the profile in reports/validate.json becomes the reference
    python -m llm.data.checks.profile --clear     no reference: drift is not judged until the next release

The reference is a file in git, data/reference/profile.json, and a dep of validate; so drift is a function of
what dvc.lock names. It is not read from models/release, which is made from what validate judges (a cycle),
and no stage writes it (after a release a stage would be out of date at once): accepting one is a decision,
and a commit. Refused while the gate has not passed, so the reference is that of a release.
"""

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llm.config import ConfigError, require
from llm.data.text.scripts import count_scripts

REFERENCE = Path("data/reference/profile.json")
FEATURES = ("length", "language", "source", "script", "words")
UNDETERMINED = "und"  # BCP 47's name for a language that nobody has identified
MIN_SHARE = 1e-4  # shares below count as this much in the index, so that one stray document is no infinite drift
MAX_WORDS, COMPARED_WORDS, REST = 200, 100, "(other words)"
MIN_WORD_DOCUMENTS = 20  # a word of fewer sampled documents may be a name, and the profile is in git
SAMPLE_DOCUMENTS, SAMPLE_CHARS = 5_000, 2_000  # what words are counted in: all documents would not fit in memory
_WORD = re.compile(r"[^\W\d_]+")


@dataclass
class Counts:
    """Sums over documents; those of two batches add up."""

    languages: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    word_documents: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Add another's sums to these."""
        for name, counter in vars(other).items():
            getattr(self, name).update(counter)


def count_batch(texts: pa.Array, sources: pa.Array, languages: Iterable[str], sampled: NDArray[np.bool_]) -> Counts:
    """Return the sums of a batch of documents; words are counted in the sampled ones alone."""
    counts, plain = Counts(), pc.fill_null(texts, "").to_pylist()
    for text, source, language in zip(plain, sources.to_pylist(), languages, strict=True):
        counts.sources[source or ""] += len(text)
        counts.languages[language or UNDETERMINED] += len(text)
    for place in np.flatnonzero(sampled):
        words = split_words(plain[place])
        counts.words.update(words)
        counts.word_documents.update(set(words))
    counts.scripts.update(count_scripts("".join(plain)))
    return counts


def split_words(text: str) -> list[str]:
    """Return the words of the start of a text, lower-case."""
    return _WORD.findall(text[:SAMPLE_CHARS].lower())


def list_languages(metas: pa.Array) -> tuple[list[str], list[bool]]:
    """Return of each `meta` the language code, "" where it names none, and whether it is a JSON object at all."""
    languages, are_objects = [], []
    for meta in metas.to_pylist():
        try:
            content = json.loads(meta or "{}")
        except (ValueError, RecursionError):
            content = None
        is_object = isinstance(content, dict)
        language = content.get("language") if is_object else None
        languages.append(language if isinstance(language, str) else "")
        are_objects.append(is_object)
    return languages, are_objects


def sample_share(num_documents: int) -> float:
    """Return the share of documents whose words are counted."""
    return min(1.0, SAMPLE_DOCUMENTS / max(num_documents, 1))


def summarise(counts: Counts, lengths: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Return the profile: shares per length, language, source, script and frequent word, all of which repeat.

    Args:    counts: sums over all documents.  lengths: characters of each document.
    Returns: a JSON object; `length` is a share of documents, `words` of the sampled words, the others of characters
             (`script`: of letters). A bin of `length` is named by its upper end, a power of two, exclusive.
    """
    bins = {name_bits(bits): int(n) for bits, n in enumerate(np.bincount(count_bits(lengths))) if n}
    frequent = {word: n for word, n in counts.words.items() if counts.word_documents[word] >= MIN_WORD_DOCUMENTS}
    top = sorted(frequent, key=lambda word: (-frequent[word], word))[:MAX_WORDS]
    total = max(counts.words.total(), 1)
    quantiles = np.quantile(lengths, (0.05, 0.25, 0.5, 0.75, 0.95), method="lower") if len(lengths) else np.zeros(5)
    return {
        "documents": len(lengths),
        "characters": int(lengths.sum(dtype=np.int64)),
        "length_quantiles": {f"p{p}": int(q) for p, q in zip((5, 25, 50, 75, 95), quantiles, strict=True)},
        "length": to_shares(bins),
        "language": to_shares(counts.languages),
        "source": to_shares(counts.sources),
        "script": to_shares(counts.scripts),
        "words": [[word, round(frequent[word] / total, 6)] for word in top],
    }


def count_bits(lengths: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """Return how many binary digits each length has, at least 5: documents of a bin are at most twice as long."""
    return np.asarray(np.maximum(np.frexp(lengths)[1], 5), dtype=np.int32)


def name_bits(bits: int) -> str:
    """Return the name of a bin of lengths: its upper end, exclusive."""
    return f"<{1 << bits}"


def to_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Return counts as shares of their sum, without those that round to nothing."""
    total = max(sum(counts.values()), 1)
    shares = {name: round(count / total, 6) for name, count in sorted(counts.items())}
    return {name: share for name, share in shares.items() if share}


def list_bins(feature: str, text: str, source: str, language: str, known: set[str]) -> set[str]:
    """Return the bins of a feature that a document belongs to: its main script, and every word of it."""
    if feature == "length":
        return {name_bits(max(len(text).bit_length(), 5))}
    if feature == "script":
        return {name for name, _ in count_scripts(text).most_common(1)}
    if feature == "words":
        words = set(split_words(text))
        return words | {REST} if words - known else words
    return {source if feature == "source" else language or UNDETERMINED}


@dataclass(frozen=True)
class Drift:
    """How far one feature has moved; `grown` is the bin that has gained the most."""

    feature: str
    index: float
    grown: str
    expected: float
    actual: float


def measure_drift(reference: Mapping[str, Any], profile: Mapping[str, Any]) -> list[Drift]:
    """Return the drift of every feature that both profiles hold."""
    found = []
    for feature in FEATURES:
        if reference.get(feature) and profile.get(feature):
            expected, actual = read_shares(reference, profile, feature)
            moved = {name: actual.get(name, 0) - expected.get(name, 0) for name in sorted({*expected, *actual})}
            grown = max(moved, key=lambda name: moved[name])
            index = round(stability_index(expected, actual), 6)
            found.append(Drift(feature, index, grown, expected.get(grown, 0), actual.get(grown, 0)))
    return found


def read_shares(
    reference: Mapping[str, Any], profile: Mapping[str, Any], feature: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Return a feature's shares in both; of words, those of the reference's most frequent ones and of the rest."""
    if feature != "words":
        return dict(reference[feature]), dict(profile[feature])
    expected, now = dict(reference["words"][:COMPARED_WORDS]), dict(profile["words"])
    actual = {word: now.get(word, 0.0) for word in expected}
    return expected | {REST: 1 - sum(expected.values())}, actual | {REST: 1 - sum(actual.values())}


def stability_index(expected: Mapping[str, float], actual: Mapping[str, float]) -> float:
    """Return the population stability index of two distributions over named bins.

        PSI = sum over bins of (a - e) ln(a / e)    [nats]

    Args:    expected, actual: shares e and a of each bin, each summing to 1; a missing bin is 0.
    Returns: 0 for equal shares, symmetric, without upper bound. By convention below 0.1 no change worth a look,
             from 0.25 on another population.
    Source:  Siddiqi 2006, Credit Risk Scorecards, ch. 9; it is Jeffreys' divergence (Kullback and Leibler 1951).
             Differs: a share below MIN_SHARE counts as MIN_SHARE.
    """
    pairs = ((max(expected.get(n, 0), MIN_SHARE), max(actual.get(n, 0), MIN_SHARE)) for n in {*expected, *actual})
    return math.fsum((a - e) * math.log(a / e) for e, a in pairs)


def read_reference(path: Path) -> dict[str, Any]:
    """Return the reference, {"release": name, "profile": {...}}; both are empty until a release is accepted."""
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        release, profile = content["release"], content["profile"]
        assert isinstance(release, str)
        assert isinstance(profile, dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"{path}: not a profile; `python -m llm.data.checks.profile --clear` writes an empty one"
        ) from error
    return {"release": release, "profile": profile}


def accept(root: Path) -> str:
    """Make the profile of the data that the last release was made from the reference; return the release's name."""
    validate, package = (root / "reports" / f"{name}.json" for name in ("validate", "package"))
    for report in (validate, package):
        require(report.exists(), f"{report} does not exist; run `dvc repro` (make run) first")
    made = json.loads(package.read_text(encoding="utf8"))["metrics"]
    require(made["gate"]["passed"], f"release {made['release']} has not passed its gate: it cannot be the reference")
    profile = json.loads(validate.read_text(encoding="utf8"))["metrics"].get("profile")
    require(bool(profile), f"{validate} holds no profile; run `dvc repro` (make run) first")
    write_reference(root / REFERENCE, made["release"], profile)
    return str(made["release"])


def write_reference(path: Path, release: str, profile: Mapping[str, Any]) -> None:
    """Write the reference file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"release": release, "profile": profile}, indent=1, sort_keys=True) + "\n", "utf8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--accept", action="store_true", help="take the last release's profile")
    action.add_argument("--clear", action="store_true", help="take none")
    arguments = parser.parse_args()
    try:
        if arguments.clear:
            write_reference(REFERENCE, "", {})
            print(f"{REFERENCE}: no reference; drift is not judged. Commit it.")
        else:
            print(f"{REFERENCE}: profile of release {accept(Path())}. Commit it; the next run of validate uses it.")
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
