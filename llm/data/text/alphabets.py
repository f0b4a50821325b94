"""Tell the code pages of Latin text apart: the right one turns the high bytes into letters of one language.

Pages for Western, Central European, Turkish and Baltic languages give letters for nearly every byte, so that
a page that decodes without error proves nothing. But no language has both `ă` and `ő`, which is what
Portuguese becomes under the page of Budapest.
"""

# The commonest first: of pages that fit alike the first is taken.
LATIN_PAGES = [
    "cp1252",
    "cp1250",
    "iso8859_2",
    "cp1254",
    "cp1257",
    "iso8859_15",
    "mac_roman",
    "cp850",
    "cp437",
    "cp852",
]

# The letters beyond a-z of each language, with those of its common loan words.
_LETTERS = {
    "English": "éèêïöç", "French": "éèàùâêîôûçëïüÿœæ", "German": "äöüßé", "Spanish": "áéíóúüñ",
    "Portuguese": "áéíóúâêôãõàçü", "Italian": "àèéìíîòóùú", "Catalan": "àéèíïòóúüç·", "Dutch": "éëïóöüèêáç",
    "Danish": "æøåéü", "Swedish": "åäöéüà", "Icelandic": "áéíóúýðþæö", "Faroese": "áíóúýðæø", "Irish": "áéíóú",
    "Welsh": "âêîôûŵŷáéàèïöü", "Basque": "ñçü", "Estonian": "õäöüšž", "Albanian": "çë", "Afrikaans": "êëéïôöûáè",
    "Polish": "ąćęłńóśźż", "Czech": "áčďéěíňóřšťúůýž", "Slovak": "áäčďéíĺľňóôŕšťúýž", "Hungarian": "áéíóöőúüű",
    "Romanian": "ăâîşţșțéá", "Croatian": "čćđšž", "Turkish": "çğıöşüâîûi̇", "Latvian": "āčēģīķļņšūžōŗ",
    "Lithuanian": "ąčęėįšųūž", "Sorbian": "ćčěłńóřšśźž",
}  # fmt: skip
_SIGNS = frozenset(
    "\u2018\u2019\u201a\u201c\u201d\u201e\u2013\u2014\u2026\u2022«»°§©®™€£½¼¾²³±×·¿¡ºª\u00a0\u2039\u203a¢¥¶´"
)
_SIGN_WEIGHT = 0.9  # a little below a letter's: between `’` and a letter of the language, the letter
_ALPHABETS = {name: frozenset(letters) for name, letters in _LETTERS.items()}


def measure_fit(sample: bytes, page: str) -> float:
    """Return the share of the high bytes that the page makes signs or letters of the one language that fits best.

    0 for bytes that the page lacks, and for text that is not chiefly in ASCII letters.
    """
    try:
        text = sample.decode(page)
    except UnicodeDecodeError:
        return 0.0
    high = 0
    plain = sum(one.isascii() and one.isalpha() for one in text)
    letters: dict[str, int] = {}
    signs = 0
    before = " "
    for one in text:
        if not one.isascii():
            high += 1
            if one in _SIGNS:
                signs += 1
            elif not (one.isupper() and before.islower()):  # no language has capitals within words
                letters[one.lower()] = letters.get(one.lower(), 0) + 1
        before = one
    if plain < high or high == 0:
        return 0.0
    best = max(sum(letters.get(one, 0) for one in alphabet) for alphabet in _ALPHABETS.values())
    return (best + _SIGN_WEIGHT * signs) / high if signs < high else 1.0
