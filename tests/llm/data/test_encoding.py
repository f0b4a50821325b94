"""Encodings are told by the bytes; a wrong declaration loses; what is no text is refused."""

import codecs
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.schema import BadRecord
from llm.data.text.encoding import decode_text, detect_encoding

# Plain sentences on a mill, one per language: what each code page is for.
SENTENCES = {
    "french": "Le meunier était là dès l’aube ; où va-t-il, ce garçon, quand la forêt s’éveille à Noël ?",
    "german": "Der Müller mahlt das Korn über Nacht, weil größere Säcke schön teuer wären.",
    "spanish": "El molinero enseñó al niño cómo se molía el trigo en otoño, ¿y después qué pasó?",
    "portuguese": "O moinho não está à venda; a produção de pão começa de manhã, e são três irmãos.",
    "polish": "Młynarz miele zboże każdej nocy, a wóz ciągnięty przez konie już wraca z miasta. Źle śpi.",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy, když mlynář řezal dříví u řeky.",
    "turkish": "Değirmenci buğdayı gece öğütür, çünkü gündüz ırmağın suyu azdır ve işçiler uyur.",
    "lithuanian": "Malūnininkas mala grūdus naktį, nes dieną upėje mažai vandens, o žmonės ilsisi po ąžuolu.",
    "russian": "Мельник мелет зерно по ночам, потому что днём в реке мало воды. Так было всегда.",
    "ukrainian": "Мірошник меле зерно вночі, бо вдень у річці мало води, і ця їжа всім потрібна.",
    "greek": "Ο μυλωνάς αλέθει το σιτάρι τη νύχτα, επειδή την ημέρα το ποτάμι έχει λίγο νερό.",
    "japanese": "粉屋は夜に小麦を挽きます。昼間は川の水が少ないからです。カタカナもあります。",
    "chinese": "磨坊主在夜里磨面粉，因为白天河里的水很少。人们等着新鲜的面包，然后回家。",
    "taiwanese": "磨坊主人在夜裡磨麵粉，因為白天河裡的水很少。人們等著新鮮的麵包，然後回家。",
    "korean": "방앗간 주인은 밤에 밀을 빻습니다. 낮에는 강물이 적기 때문입니다. 사람들은 빵을 기다립니다.",
}  # fmt: skip
PAGES = [
    ("french", "cp1252"), ("german", "latin-1"), ("spanish", "cp1252"), ("portuguese", "latin-1"),
    ("polish", "cp1250"), ("polish", "iso8859_2"), ("czech", "cp1250"), ("czech", "iso8859_2"), ("turkish", "cp1254"),
    ("lithuanian", "cp1257"), ("russian", "cp1251"), ("russian", "koi8_r"), ("russian", "cp866"),
    ("ukrainian", "cp1251"), ("greek", "cp1253"), ("japanese", "shift_jis"), ("japanese", "euc_jp"),
    ("japanese", "iso2022_jp"), ("chinese", "gb18030"), ("taiwanese", "big5"), ("korean", "euc_kr"),
    ("french", "mac_roman"), ("german", "cp850"),
]  # fmt: skip
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8", "utf-8-sig"]


@pytest.mark.parametrize("language, page", PAGES)
@pytest.mark.parametrize(
    "declared", [None, "utf-8", "windows-1252", "koi8-r", "shift_jis", "no-such-charset", "base64"]
)
def test_the_bytes_decide_whatever_is_declared(language: str, page: str, declared: str | None) -> None:
    content = SENTENCES[language].encode(page, "replace")
    assert decode_text(content, declared) == content.decode(page)


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", SENTENCES)
def test_wide_encodings_with_and_without_a_mark(language: str, encoding: str) -> None:
    text = SENTENCES[language] + "\nEnd. Конец\u3000\n"
    assert decode_text(text.encode(encoding), "iso-8859-1") == text


def test_a_right_declaration_settles_what_the_bytes_leave_open() -> None:
    """Two letters of Czech are two letters of Western languages just as well."""
    content = "V tichém údolí".encode("cp1250")
    assert detect_encoding(content, "windows-1250") == "cp1250"
    assert detect_encoding(content) == "cp1252"


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)),
        random.Random(5).randbytes(3000),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x02\x00\x00\x00\x01\x18\x08\x06\x00\x00\x00",
        b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + random.Random(6).randbytes(500),
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00>\x00\x01\x00\x00\x00",
        bytes(100),
        b"\xff\xfe" + random.Random(7).randbytes(999),
    ],
)
def test_what_is_no_text_is_refused(content: bytes) -> None:
    for read in (decode_text, detect_encoding):
        with pytest.raises(BadRecord) as caught:
            read(content)
        assert caught.value.reason == "binary"


def test_broken_utf8_stays_utf8() -> None:
    text = SENTENCES["russian"] * 20
    assert decode_text(text[:100].encode() + b"\xff" + text[100:].encode()) == text[:100] + "\ufffd" + text[100:]
    assert detect_encoding(text.encode()[:333]) == "utf-8"  # cut within a character


def test_stray_zero_bytes_do_not_hide_a_text() -> None:
    text = "A plain line of text that someone padded.\n" * 20
    assert decode_text(text.encode() + b"\0\0") == text + "\0\0"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "utf-16", "latin-1", "big5", "rot13", "\0", ""]))
def test_hostile_bytes_are_text_or_a_reject(content: bytes, declared: str | None) -> None:
    try:
        text = decode_text(content, declared)
    except BadRecord:
        with pytest.raises(BadRecord, match="binary"):
            detect_encoding(content, declared)
    else:
        assert len(text.encode("utf-8")) >= len(text)  # no lone surrogates
        codecs.lookup(detect_encoding(content, declared))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=80))
def test_every_utf8_text_comes_back(text: str) -> None:
    assert decode_text(text.encode("utf-8"), "iso-8859-1") == text.removeprefix("\ufeff")
