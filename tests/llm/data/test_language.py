"""Languages of real sentences, and of the Declaration of Human Rights."""

# ruff: noqa: SIM905 (a list of codes reads best as words)

import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from llm.data.filters.judge import FilterParams, judge_texts
from llm.data.text.encoding import decode_text
from llm.data.text.language import UNKNOWN, identify_languages

SENTENCES = {
    "en": "The miller opens the gate of the pond before the sun is up.",
    "de": "Der Müller öffnet das Wehr am Teich, bevor die Sonne aufgeht.",
    "fr": "Le meunier ouvre la vanne de l'étang avant le lever du soleil.",
    "es": "El molinero abre la compuerta del estanque antes de que salga el sol.",
    "it": "Il mugnaio apre la chiusa dello stagno prima che sorga il sole.",
    "pt": "O moleiro abre a comporta do açude antes de o sol nascer, e não fecha.",
    "nl": "De molenaar opent de sluis van de vijver voordat de zon opkomt.",
    "sv": "Mjölnaren öppnar dammluckan innan solen går upp och går sedan hem.",
    "pl": "Młynarz otwiera śluzę stawu, zanim wzejdzie słońce nad rzeką.",
    "cs": "Mlynář otevírá stavidlo rybníka dříve, než vyjde slunce.",
    "ru": "Мельник открывает затвор пруда до восхода солнца.",
    "uk": "Мірошник відчиняє загату ставка ще до сходу сонця.",
    "el": "Ο μυλωνάς ανοίγει την πύλη της λίμνης πριν ανατείλει ο ήλιος.",
    "tr": "Değirmenci güneş doğmadan önce göletin kapağını açıyor.",
    "ar": "يفتح الطحان بوابة البركة قبل شروق الشمس كل يوم.",
    "he": "הטוחן פותח את שער הבריכה לפני זריחת השמש.",
    "hi": "चक्की वाला सूरज उगने से पहले तालाब का फाटक खोलता है।",
    "zh": "磨坊主在太阳升起之前打开池塘的闸门。",
    "ja": "粉屋は日の出前に池の水門を開けます。",
    "ko": "방앗간 주인은 해가 뜨기 전에 연못의 수문을 연다.",
    "vi": "Người thợ xay mở cửa cống của cái ao trước khi mặt trời mọc.",
    "fi": "Mylläri avaa lammen sulun ennen kuin aurinko nousee.",
}
# Files of the Declaration and what the model calls their languages.
DECLARATION = dict(
    zip(
        "afr arb hye eus bel ben bul cat ces dan nld eng epo est fin fra glg kat ell_monotonic guj heb hin hun isl "
        "ind gle ita jpn kan kaz khm kor lao lat lav lit mkd mal mar mri nob pan pol por_PT rus san slk "
        "slv som spa swh swe tam tha tur ukr urd vie cym cmn_hans pes_1".split(),
        "af ar hy eu be bn bg ca cs da nl en eo et fi fr gl ka el gu he hi hu is "
        "id ga it ja kn kk km ko lo la lv lt mk ml mr mi no pa pl pt ru sa sk "
        "sl so es sw sv ta th tr uk ur vi cy zh fa".split(),
        strict=True,
    )
)


def test_a_sentence_of_each_language() -> None:
    found = identify_languages(pa.array(list(SENTENCES.values())))
    assert [code for code, _ in found] == list(SENTENCES)
    assert all(0.3 < probability <= 1 for _, probability in found)


@pytest.mark.parametrize("text", ["", "ok", "12 345 + 6", "https://example.com/some/long/path", "日本", "!!!\n???"])
def test_too_little_text_is_undetermined(text: str) -> None:
    assert identify_languages(pa.array([text])) == [(UNKNOWN, 0.0)]


def test_lines_and_capitals_change_nothing() -> None:
    text = "THE MILLER OPENS THE GATE\nOF THE POND BEFORE THE SUN IS UP"
    assert identify_languages(pa.array([text]))[0][0] == "en"


def test_the_filter_keeps_the_languages_that_are_named() -> None:
    texts = pa.array([SENTENCES["en"], SENTENCES["fr"], "short"])

    def judge(**changes: object) -> list[str | None]:
        params = {"simple": {"enabled": False}, "language": {"enabled": True, **changes}}
        return [one and one[0] for one in judge_texts(texts, FilterParams.model_validate(params))]

    assert judge() == [None, None, None]
    assert judge(allowed=["en"]) == [None, "language.allowed", None]
    assert judge(allowed=["en"], keep_unknown=False) == [None, "language.allowed", "language.min_probability"]
    assert judge(min_probability=1.0, keep_unknown=False)[2] == "language.min_probability"


def test_the_declaration_of_human_rights(shared_data: Path) -> None:
    archive = zipfile.ZipFile(shared_data / "nltk" / "udhr2.zip")
    names = {Path(one).stem: one for one in archive.namelist()}
    known = {stem: code for stem, code in DECLARATION.items() if stem in names}
    assert len(known) > 55
    paragraphs, wanted = [], []
    for stem, code in known.items():
        lines = [line.strip() for line in decode_text(archive.read(names[stem])).split("\n")]
        chosen = [line for line in lines if len(line) >= 60][:10]
        paragraphs += chosen
        wanted += [code] * len(chosen)
    found = [code for code, _ in identify_languages(pa.array(paragraphs))]
    right = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert right / len(wanted) > 0.93
