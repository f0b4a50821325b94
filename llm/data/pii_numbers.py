"""Find card, bank account, social security and telephone numbers.

Cards are checked by Luhn and the issuer's prefix, accounts by mod 97 and the country's length; SSNs and telephone
numbers have no checksum, so they count by a form that little else has, or by a word beside them such as "call".
Only numbers in ASCII digits are looked for.

Source: Luhn is ISO/IEC 7812-1 annex B; mod 97-10 ISO 7064; IBAN lengths the SWIFT registry; telephone numbers E.164.
"""

import re
from collections.abc import Iterator

# At least seven digits, no two of them further apart than two separators.
_RUN = re.compile(r"[0-9](?:[ .()/\u00a0\u2010-\u2013-]{0,2}[0-9]){6,}")
_NOT_BEFORE = r"(?<![\w.+])(?<!\w[-/])"
_NOT_AFTER = r"(?!\w|[-./][0-9])"


def find_numbers(text: str, first: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield (type, start, end) of cards, SSNs and telephone numbers; findings may overlap.

    Args:    first: where the first digit is, when that is known.
    """
    for run in _RUN.finditer(text, first):
        start, end = run.span()
        for place in _find_cards(text, start, end):
            yield "credit_card", *place
        for place in _find_ssns(text, start, end):
            yield "ssn", *place
        for place in _find_phones(text, start, end):
            yield "phone", *place


# --- cards ---

_CARD = re.compile(
    _NOT_BEFORE
    + r"(?:[0-9]{12,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{2,4}(?:\1[0-9]{3})?|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})"
    + _NOT_AFTER
)
# Of 16 digits in one piece, 10 % pass Luhn: with these prefixes few are anything else (microseconds begin with 1).
_ISSUED = re.compile(r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|6011|62|64[4-9]|65|35(?:2[89]|[3-8])")
_CARD_WORD = re.compile(
    r"(?i)\b(?:cards?|credit|debit|visa|master-?card|maestro|amex|american express|discover|diners|jcb|cc|ccn|pan"
    r"|carte|karte|kreditkarte|tarjeta|carta|cart[aã]o|kort|karta)\b"
)


def _find_cards(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text, start, end):
        digits = re.sub(r"\D", "", match[0])
        if digits[0] != "0" and passes_luhn(digits):
            sure = (len(digits) == 16 and _ISSUED.match(digits)) or match[1] or match[2]
            if sure or _CARD_WORD.search(text, max(0, start - 60), end + 30):
                yield match.span()


def passes_luhn(digits: str) -> bool:
    """Tell whether the last digit checks the others: from the right, every second digit counts twice."""
    total = sum(int(digit) for digit in digits[-1::-2])
    total += sum(int(digit) * 2 - 9 * (digit > "4") for digit in digits[-2::-2])
    return total % 10 == 0 and any(digit != "0" for digit in digits)


# --- US social security numbers ---

_SSN = re.compile(
    _NOT_BEFORE
    + r"(?!000|666)[0-9]{3}([ \u2010-\u2013-]?)(?!00)[0-9]{2}\1(?!0000)[0-9]{4}"
    + r"(?!\w|[-./\u2010-\u2013][0-9])"
)
_SSN_WORD = re.compile(r"(?i)\b(?:ssns?|s\.s\.n|soc(?:ial)?\.? sec(?:urity)?|itin|tin|taxpayer)\b")


def _find_ssns(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield ddd-dd-dddd; without the dashes, or with an area of 900 and up (taxpayers), only beside its name."""
    for match in _SSN.finditer(text, start, end):
        plain = match[1] not in ("", " ") and match[0][0] != "9"
        if plain or _SSN_WORD.search(text, max(0, start - 50), end + 20):
            yield match.span()


# --- telephone numbers ---

_BETWEEN = r"(?:[ \u00a0]?\(|\)[ \u00a0./-]?|[ .\u00a0\u2010-\u2013/-])?"
_EXTENSION = r"(?:[ ,;]{0,2}(?:x|ext\.?|extension|#)[ .:]{0,2}[0-9]{1,6})?"
_DASH = r"[ .\u00a0\u2010-\u2013-]"
_PLUS = re.compile(r"(?<![\w.+])\+\(?[1-9](?:" + _BETWEEN + r"[0-9]){7,14}(?![0-9])" + _EXTENSION + _NOT_AFTER)
_ZERO_ZERO = re.compile(
    _NOT_BEFORE + r"00[ -]?[1-9][0-9]{0,2}(?:" + _BETWEEN + r"[0-9]){7,12}" + _EXTENSION + _NOT_AFTER
)
_NANP = re.compile(
    _NOT_BEFORE + r"(?:1[ .-])?(?:\([2-9][0-9]{2}\)" + _DASH + r"?|[2-9][0-9]{2}(" + _DASH + r"))"
    r"[2-9][0-9]{2}" + _DASH + r"[0-9]{4}" + _EXTENSION + _NOT_AFTER
)  # fmt: skip
_TRUNK = re.compile(
    r"(?<![\w.+])(?<!\w[-/])(?<![0-9][ ])\(?0[1-9][0-9]{0,3}(?:\)[ ]?|[ ./\u2010-\u2013-])"
    r"[0-9]{2,8}(?:([ .\u2010-\u2013-])[0-9]{2,4}(?:\1[0-9]{2,4}){0,3})?(?![ ]?[0-9])" + _NOT_AFTER
)
# E.164 country codes.
_COUNTRY = re.compile(
    r"[17]|2(?:0|7|1[123689]|[2346][0-9]|5[0-8]|9[01789])|3(?:[0-469]|5[0-9]|7[0-8]|8[0-35-79])|4(?:[013-9]|2[013])"
    r"|5(?:[1-8]|0[0-9]|9[0-9])|6(?:[0-6]|7[0-9]|8[0-35-9]|9[0-2])|8(?:[1246]|0[08]|5[02356]|7[0-8]|8[0-8])"
    r"|9(?:[0-58]|6[0-8]|7[0-79]|9[2-68])"
)
_AREA = re.compile(
    _NOT_BEFORE + r"(?:[78][ ]?|(?<![0-9][ ]))\((?!19|20)[0-9]{2,5}\)[ ]?"
    r"[0-9]{2,5}([ .\u2010-\u2013-])[0-9]{2,4}(?:\1[0-9]{2,4})?" + _NOT_AFTER
)  # fmt: skip
_STRONG = (
    r"(?:tele|smart|cell)?phones?|tel(?:ephone|efon\w*|efax|éfono|efoon)?|t[ée]l(?:[ée]phone|s)?|tlf|fon|mob(?:ile?|iles"
    r"|il\w*)?|m[óo]vil|cell?(?:ular\w*)?|handy(?:nummer)?|rufnummer|portable|fax|whats?app|viber|sms|hot-?line|help-?line"
    r"|voice-?mail|land-?line|pager|puhelin\w*|gsm|тел\w*|факс|моб\w*|τηλ\w*|κιν\w*|電話|电话|電話番号|手机|携帯|전화|휴대폰|هاتف|טלפון"
)
_WEAK = (
    r"call(?:s|ed|ing)?|dial(?:s|l?ed|l?ing)?|ring|rang|text(?:ed|ing)?|answer(?:s|ed|ing)?|messag(?:es?|ed|ing)|contact\w*"
    r"|reach(?:ed|able)?|hotline|emergency|speak|talk|llam\w+|appel\w+|ruf\w*|anrufen|chiam\w+|lig(?:ue|ar)|bel(?:len)?|dzwoni\w*"
)
# Directly before the number; further away they speak of a place.
_NEXT = r"office|desk|direct|reception|switchboard|registered|home|work|main"
_STRONG_WORD = re.compile(rf"(?i)(?<![^\W_])(?:{_STRONG})(?![^\W_])")
_ANY_WORD = re.compile(rf"(?i)(?<![^\W_])(?:(?:{_STRONG}|{_WEAK})(?![^\W_])|(?:{_NEXT})[ :.(]{{1,4}}\Z)")
_WORD_AFTER = re.compile(
    r"(?i)(?:x[0-9]{1,6})?[ ,;:()/\\|-]{0,3}"
    r"(?:office|fax|mob(?:ile)?|cell|phone|tel|home|work|desk|direct|main|switchboard)\b"
)
_DATE = re.compile(
    r"(?:(?:19|20)[0-9]{2}([-/.])[01]?[0-9]\1[0-3]?[0-9]|[0-3]?[0-9]([-/.])[0-3]?[0-9]\2(?:19|20)[0-9]{2})(?![0-9])"
)
CONTEXT_CHARS = 40


def _find_phones(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the telephone numbers of one run of digits."""
    first, last = max(0, start - 2), min(len(text), end + 14)
    found = False
    for pattern, judge in FORMS:
        for match in pattern.finditer(text, first, last):
            if match.start() < end and judge(match):
                found = True
                yield match.span()
    if not found and _is_phone_like(text, start, end):
        opening = start - 1 if text[start - 1 : start] in ("(", "+") else start
        extension = re.compile(_EXTENSION).match(text, end)
        yield opening, extension.end() if extension else end


def _is_grouped(match: re.Match[str]) -> bool:
    """After + or 00: 8 to 15 digits in groups as people write them, not a row of small numbers."""
    groups = re.findall(r"[0-9]+", re.split(r"[x#e]", match[0])[0])
    small = sum(len(one) == 1 for one in groups)
    if not _COUNTRY.match("".join(groups).removeprefix("00")):
        return False
    if match[0].startswith("00") and (len(groups) == 1 or all(len(one) <= 2 for one in groups)):
        return False  # a serial number, or bytes
    if len(groups) == 2 and "." in match[0]:
        return False  # a decimal fraction
    return small <= 3 and small < len(groups) and 8 <= sum(map(len, groups)) - 2 * match[0].startswith("00") <= 15


def _is_alone(match: re.Match[str]) -> bool:
    """North American: with spaces only, it must not stand in a row of numbers."""
    if re.search(r"[-.()\u2010-\u2013]", match[0]):
        return True
    start, end = match.span()
    around = match.string[max(0, start - 2) : start] + "|" + match.string[end : end + 2]
    return not re.search(r"[0-9][ ,]?\||\|[ ,]?[0-9]", around)


def _has_trunk(match: re.Match[str]) -> bool:
    """National, with a leading 0: 9 to 11 digits that are no date, no example of digits and no bytes."""
    groups = re.findall(r"[0-9]+", match[0])
    digits = "".join(groups)
    if not (9 if len(groups) > 2 else 10) <= len(digits) <= 11 or digits in "01234567890123":
        return False
    return _DATE.match(match[0]) is None and sum(one[0] == "0" for one in groups) < 3


def _has_area(match: re.Match[str]) -> bool:
    """National, with the area in parentheses: 9 to 11 digits; fewer may be a volume and its pages."""
    return 9 <= sum(map(str.isdigit, match[0])) <= 11


FORMS = (
    (_PLUS, _is_grouped), (_ZERO_ZERO, _is_grouped), (_NANP, _is_alone), (_TRUNK, _has_trunk), (_AREA, _has_area),
)  # fmt: skip


def _is_phone_like(text: str, start: int, end: int) -> bool:
    """Any other run of 7 to 15 digits, when a word beside it says that it is a telephone number."""
    groups = re.findall(r"[0-9]+", text[start:end])
    count = sum(map(len, groups))
    if (
        not 7 <= count <= 15
        or sum(len(one) == 1 for one in groups) > 1
        or (len(groups) == 2 and "." in text[start:end])
    ):
        return False
    if (
        sum(one[0] == "0" for one in groups) > 2
        or all(len(one) < 4 for one in groups)
        and text.count(".", start, end) == 3
    ):
        return False  # bytes, or what is nearly an IP address
    if all(len(one) == 3 for one in groups[1:]) and (len(groups[0]) == 1 or "000" in groups):
        return False  # thousands
    before = text[max(0, start - 2) : start]
    if (
        before[-1:].isalnum()
        or before[-1:] in ("_", ".", "$", "€", "£")
        or (before[-1:] in ("-", "/") and before[:1].isalnum())
    ):
        return False
    if len(set(re.findall(r"[./-]", text[start:end]))) > 1:
        return False  # sums and fractions
    after = text[end : end + 2]
    if (after[:1].isalnum() and after[:1] != "x") or after[:1] in ("_", "%") or _DATE.match(text, start, end):
        return False
    words = _STRONG_WORD if len(groups) == 1 else _ANY_WORD
    return (
        words.search(text, max(0, start - CONTEXT_CHARS), start) is not None
        or _WORD_AFTER.match(text, end, end + 20) is not None
    )


# --- bank accounts ---

_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 "
    "EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 "
    "KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 "
    "PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 "
    "UA29 VA22 VG24 XK20 YE30"
)
IBAN_LENGTHS = {one[:2]: int(one[2:]) for one in _LENGTHS.split()}
_IBAN = re.compile(r"[0-9]{2}(?<=\b[A-Za-z]{2}[0-9]{2})(?=[ -]?[A-Za-z0-9]{4}[ -]?[A-Za-z0-9]{4})")


def find_ibans(text: str, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yield bank account numbers, in one piece or in groups."""
    for match in _IBAN.finditer(text, first):
        start = match.start() - 2
        length = IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length and (end := _take(text, start, length)) and passes_mod97(re.sub(r"[ -]", "", text[start:end])):
            yield start, end


def _take(text: str, start: int, length: int) -> int | None:
    """Return the end of `length` letters and digits with single separators, or None when they do not end a word."""
    place = start
    while length and place < len(text):
        if text[place].isascii() and text[place].isalnum():
            length -= 1
        elif text[place] not in " -" or not text[place - 1].isalnum():
            return None
        place += 1
    return None if length or text[place : place + 1].isalnum() else place


def passes_mod97(iban: str) -> bool:
    """Tell whether the check digits are right: moved to the end, with letters as 10 to 35, it is 1 modulo 97."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1
