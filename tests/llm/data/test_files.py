"""Finding, decoding and cutting text files."""

import random
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.data.files import LONG_TEXT_CHARS, cut_passages, decode_text, list_files


def write_book(seed: int, paragraphs: int) -> list[str]:
    generator = random.Random(seed)
    words = ["mill", "stone", "wheel", "river", "flour", "grain", "turned", "slowly", "and", "the"]
    return [" ".join(generator.choices(words, k=generator.randint(20, 120))) for _ in range(paragraphs)]


@pytest.mark.parametrize(
    "content",
    ["café\n".encode(), b"\xef\xbb\xbfcaf\xc3\xa9\n", b"caf\xe9\n", "café\n".encode("utf-16")],
    ids=["utf-8", "utf-8 with BOM", "latin-1", "utf-16 with BOM"],
)
def test_decodes_common_encodings(content: bytes) -> None:
    assert decode_text(content, Path("x.txt")) == "café\n"


def test_windows_quotes_and_undefined_bytes() -> None:
    assert decode_text(b"\x93so\x94", Path("x.txt")) == "“so”"
    assert decode_text(b"\x81\xe9", Path("x.txt")) == "\x81é"  # 0x81 is undefined in Windows-1252


def test_binary_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"photo\.txt.*not text"):
        decode_text(b"\x89PNG\0\0", Path("photo.txt"))


def test_lists_recursively_sorted_and_counts_what_it_passes_over(tmp_path: Path) -> None:
    (tmp_path / "b/deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("z.md", "b/deep/a.TXT", "b/rows.jsonl", "page.html", "LICENSE", ".hidden/x.txt", "a.txt"):
        (tmp_path / name).write_text("text")
    listing = list_files(str(tmp_path))
    assert [name for _, name in listing.files] == ["a.txt", "b/deep/a.TXT", "b/rows.jsonl", "z.md"]
    assert listing.skipped == {".html": 1, "no suffix": 1}


def test_globs_and_single_files(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt", "three.md"):
        (tmp_path / name).write_text("text")
    assert [name for _, name in list_files(f"{tmp_path}/*.txt").files] == ["one.txt", "two.txt"]
    assert [name for _, name in list_files(f"{tmp_path}/three.md").files] == ["three.md"]


@pytest.mark.parametrize("name", ["missing", "missing/*.txt", "empty", "page.html"])
def test_what_holds_no_text_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("<p>")
    with pytest.raises(ConfigError, match=name.replace("*", r"\*")):
        list_files(str(tmp_path / name))


def test_short_texts_stay_whole_and_empty_ones_vanish() -> None:
    assert cut_passages("a\r\nb") == [(0, "a\nb")]
    assert cut_passages(" \n ") == []


def test_passages_hold_all_text_at_about_the_wanted_size() -> None:
    text = "\n\n".join(write_book(1, 300))
    passages = cut_passages(text)
    assert "".join("".join(p.split()) for _, p in passages) == "".join(text.split())
    assert all(text[offset:].startswith(passage) for offset, passage in passages)
    sizes = [len(passage) for _, passage in passages]
    assert 2500 < sum(sizes) / len(sizes) < 6000
    assert max(sizes) <= 12_000


@pytest.mark.parametrize("text", ["word " * 10_000, "x" * 50_000, "line of words\n" * 4000])
def test_text_without_blank_lines_is_cut_too(text: str) -> None:
    assert len(text) > LONG_TEXT_CHARS
    passages = cut_passages(text)
    assert len(passages) > 3
    assert "".join("".join(p.split()) for _, p in passages) == "".join(text.split())


def test_a_preface_moves_few_cuts() -> None:
    """Two editions that differ at the start must give the same passages later on, else no dedup finds them."""
    book = write_book(2, 300)
    first = {passage for _, passage in cut_passages("\n\n".join(book))}
    second = {passage for _, passage in cut_passages("\n\n".join(["A preface. " * 50, *book]))}
    assert len(first & second) >= 0.8 * len(first)
