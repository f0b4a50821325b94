"""Normal form: the same one by one and in batches, stable, and with wrongly decoded text repaired."""

import json
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.text.encoding import decode_text
from llm.data.text.normalise import normalise_text, normalise_texts, repair_lines

LATIN = st.text(st.characters(max_codepoint=0x17F), max_size=60)
PLAIN = st.text(st.sampled_from("ab \t\n\r\x0b\x0c\x00\x07\x1b\x7f."), max_size=40)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(PLAIN, LATIN, st.text(max_size=40)), max_size=5))
def test_batches_are_as_single_texts_and_stable(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    once = normalise_texts(pa.array(texts, pa.string()))
    assert once.to_pylist() == [normalise_text(text) for text in texts]
    assert normalise_texts(once).to_pylist() == once.to_pylist()
    for text in once.to_pylist():
        assert unicodedata.is_normalized("NFC", text)
        assert not any(unicodedata.category(one) == "Cc" and one not in "\t\n" for one in text)
        assert "\n\n\n" not in text


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=30), st.sampled_from(["cp1252", "latin-1", "cp1250", "cp1251", "mac_roman"]))
def test_text_decoded_wrongly_is_stable_too(text: str, page: str) -> None:
    broken = text.encode("utf-8", "ignore").decode(page, "ignore")
    once = normalise_text(broken)
    assert normalise_text(once) == once


def test_a_slice_of_an_array() -> None:
    texts = pa.array(["first ", "se\r\ncond", "caf\u0065\u0301 ", "last\x00"])
    assert normalise_texts(texts[1:]).to_pylist() == ["se\ncond", "caf\u00e9", "last"]
    assert normalise_texts(texts[:0]).to_pylist() == []


@pytest.mark.parametrize("page", ["cp1252", "latin-1", "cp1250", "mac_roman"])
@pytest.mark.parametrize("text", ["El niño comió después", "Größe über Straßen", "naïve — “quoted” café"])
def test_text_decoded_by_the_wrong_table_is_repaired(text: str, page: str) -> None:
    try:
        broken = text.encode().decode(page)
    except UnicodeDecodeError:
        broken = text.encode().decode("latin-1")
    assert normalise_text(f"A plain line.\n{broken}\nЕщё строка.") == f"A plain line.\n{text}\nЕщё строка."


@pytest.mark.parametrize(
    "text",
    [
        "voilà » dit-il", "SÃO PAULO E A IRMÃ", "5 Â 6", "Größe × 3", "©®™ • ¶ §", "C’était déjà l’été…", "Ñandú ÑAÑA",
        "Đà Nẵng", "<|im_start|>system<|im_end|><|endoftext|>", "&lt;b&gt; “fancy” ﬁne",
    ],
)  # fmt: skip
def test_right_text_is_left_alone(text: str) -> None:
    assert normalise_text(text) == unicodedata.normalize("NFC", text)


def test_windows_quotes_that_were_read_as_latin_1() -> None:
    assert normalise_text("\x93So,\x94 he said\x85 \x80 5\x81") == "“So,” he said… € 5"


@pytest.mark.parametrize("name", ["synthetic", "negative"])
def test_ftfys_own_answers(shared_data: Path, name: str) -> None:
    """Of 61 cases all but those that ftfy itself expects to fail: repaired where broken, alone where not."""
    cases = json.loads((shared_data / "ftfy" / f"{name}.json").read_text(encoding="utf-8"))
    wrong = []
    for case in cases:
        wanted = case.get("fixed-encoding", case["fixed"])
        if normalise_text(case["original"]) != normalise_text(wanted) and case["expect"] == "pass":
            wrong.append(case["label"])
    assert len(cases) >= 30
    assert not wrong


def test_388_languages_are_left_alone(shared_data: Path) -> None:
    archive = zipfile.ZipFile(shared_data / "nltk" / "udhr2.zip")
    texts = [decode_text(archive.read(name)) for name in archive.namelist() if name.endswith(".txt")]
    assert len(texts) == 388
    assert [text[:40] for text in texts if repair_lines(text) != text] == []
