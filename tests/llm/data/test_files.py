"""Cutting long texts into passages."""

import random

import pytest

from llm.data.sources.passages import LONG_TEXT_CHARS, cut_passages


def write_book(seed: int, paragraphs: int) -> list[str]:
    generator = random.Random(seed)
    words = ["mill", "stone", "wheel", "river", "flour", "grain", "turned", "slowly", "and", "the"]
    return [" ".join(generator.choices(words, k=generator.randint(20, 120))) for _ in range(paragraphs)]


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
