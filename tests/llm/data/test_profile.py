"""The profile of a corpus: hand-worked indices, scripts, bins, words, and the reference that a release leaves."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config import ConfigError
from llm.data.checks.profile import (
    MIN_WORD_DOCUMENTS,
    REFERENCE,
    Counts,
    accept,
    count_batch,
    list_bins,
    list_languages,
    measure_drift,
    read_reference,
    stability_index,
    summarise,
    write_reference,
)
from llm.data.text.scripts import count_scripts

SHARES = st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any)


def profile(texts: list[str], source: str = "a", language: str = "en") -> dict[str, Any]:
    """Return the profile of documents of one source and language, all of them sampled."""
    counts = Counts()
    half = len(texts) // 2  # two batches add up to one
    for part in (texts[:half], texts[half:]):
        every = np.ones(len(part), dtype=bool)
        counts.add(
            count_batch(pa.array(part, pa.string()), pa.array([source] * len(part)), [language] * len(part), every)
        )
    return summarise(counts, np.array([len(text) for text in texts]))


def test_the_index_by_hand() -> None:
    halves, quarter = {"x": 0.5, "y": 0.5}, {"x": 0.25, "y": 0.75}
    # (0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5) = 0.25 ln 2 + 0.25 ln 1.5
    assert stability_index(halves, quarter) == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5))
    assert stability_index(halves, halves) == 0
    # A bin that is gone counts as one of 0.0001, not as infinite.
    assert stability_index(halves, {"x": 1.0}) == pytest.approx(0.5 * math.log(2) + 0.4999 * math.log(5000))


@given(SHARES, SHARES)
def test_the_index_is_symmetric_and_not_negative(first: list[int], second: list[int]) -> None:
    one, two = ({name: n / sum(counts) for name, n in zip("xyz", counts, strict=True)} for counts in (first, second))
    assert stability_index(one, two) == pytest.approx(stability_index(two, one))
    assert stability_index(one, two) >= 0


def test_letters_are_counted_by_script() -> None:
    assert count_scripts("Hello, Wörld 42! \t") == {"Latin": 10}
    assert count_scripts("мир и Ελλάδα") == {"Cyrillic": 4, "Greek": 6}
    assert count_scripts("漢字とカナ 한글 ไทย") == {"Han": 2, "Kana": 3, "Hangul": 2, "Thai": 3}
    assert count_scripts("— “€” 😀 \u3000。") == {}
    assert count_scripts("ᚠᚢ") == {"Other": 2}
    assert count_scripts("") == {}


def test_a_profile_holds_shares_and_no_rare_word() -> None:
    texts = [f"The mill of Smith{chr(97 + i)} grinds the corn." for i in range(MIN_WORD_DOCUMENTS)]
    made = profile(texts)
    assert made["documents"] == MIN_WORD_DOCUMENTS
    assert made["characters"] == sum(map(len, texts))
    assert made["length"] == {"<64": 1.0}
    assert made["length_quantiles"] == dict.fromkeys(("p5", "p25", "p50", "p75", "p95"), len(texts[0]))
    assert (made["language"], made["source"], made["script"]) == ({"en": 1.0}, {"a": 1.0}, {"Latin": 1.0})
    # What one document says may be a name: the profile is in git, and names nobody.
    words = [("the", 2 / 7), ("corn", 1 / 7), ("grinds", 1 / 7), ("mill", 1 / 7), ("of", 1 / 7)]
    assert made["words"] == [[word, round(share, 6)] for word, share in words]
    assert profile(texts[1:])["words"] == []
    assert profile(texts) == made
    assert profile([])["length_quantiles"]["p50"] == 0


def test_drift_names_what_has_grown() -> None:
    old = profile(["Corn is ground in the mill."] * 40)
    new = profile(["Зерно мелют на мельнице. " * 9] * 40, source="b", language="ru")
    found = {one.feature: one for one in measure_drift(old, new)}
    assert {name: one.grown for name, one in found.items()} == {
        "length": "<256",
        "language": "ru",
        "source": "b",
        "script": "Cyrillic",
        "words": "(other words)",
    }
    assert all(one.index > 0.25 for one in found.values())
    assert {one.index for one in measure_drift(old, old)} == {0}
    assert measure_drift({}, new) == []
    text = "Зерно мелют на мельнице. " * 9
    known = {word for word, _ in old["words"]}
    for name, one in found.items():
        assert one.grown in list_bins(name, text, "b", "ru", known)
        assert one.grown not in list_bins(name, "Corn is ground in the mill.", "a", "en", known)


def test_languages_are_read_from_meta() -> None:
    metas = [
        '{"language": "en"}',
        "{}",
        "",
        None,
        '{"language": 3}',
        "[1]",
        "{",
        '{"x": {"language": "de"}}',
        "[" * 9999,
    ]
    languages, are_objects = list_languages(pa.array(metas))
    assert languages == ["en", *[""] * 8]
    assert are_objects == [True, True, True, True, True, False, False, True, False]


def write_reports(root: Path, passed: bool) -> None:
    (root / "reports").mkdir(exist_ok=True)
    package = {"metrics": {"release": "0123456789abcdef", "gate": {"passed": passed}}}
    (root / "reports/package.json").write_text(json.dumps(package))
    (root / "reports/validate.json").write_text(json.dumps({"metrics": {"profile": {"documents": 3}}}))


def test_only_a_release_can_be_the_reference(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        accept(tmp_path)
    write_reports(tmp_path, passed=False)
    with pytest.raises(ConfigError, match="0123456789abcdef has not passed its gate"):
        accept(tmp_path)
    write_reports(tmp_path, passed=True)
    assert accept(tmp_path) == "0123456789abcdef"
    assert read_reference(tmp_path / REFERENCE) == {"release": "0123456789abcdef", "profile": {"documents": 3}}
    (tmp_path / REFERENCE).write_text("[]")
    with pytest.raises(ConfigError, match="--clear"):
        read_reference(tmp_path / REFERENCE)


def test_the_command_accepts_and_clears(tmp_path: Path) -> None:
    def run(flag: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llm.data.checks.profile", flag]
        environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    failed = run("--accept")
    assert failed.returncode == 1
    assert "reports/validate.json does not exist" in failed.stderr
    write_reports(tmp_path, passed=True)
    assert "release 0123456789abcdef" in run("--accept").stdout
    assert read_reference(tmp_path / REFERENCE)["release"] == "0123456789abcdef"
    assert run("--clear").returncode == 0
    empty = tmp_path / "empty.json"
    write_reference(empty, "", {})
    assert (tmp_path / REFERENCE).read_bytes() == empty.read_bytes()
