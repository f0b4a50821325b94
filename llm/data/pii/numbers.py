"""Find card, bank account and social security numbers; telephone numbers are in pii_phones.

Cards are checked by Luhn and the issuer's prefix, accounts by mod 97 and the country's length. SSNs have no checksum,
so they count by their dashes or by a word beside them. Only ASCII digits are looked for.

Source: Luhn is ISO/IEC 7812-1 annex B; mod 97-10 ISO 7064; IBAN lengths the SWIFT registry.
"""

import re
from collections.abc import Iterator

from llm.data.pii.phones import NOT_AFTER, NOT_BEFORE, find_phones

# At least seven digits, no two of them further apart than two separators.
_RUN = re.compile(r"[0-9](?:[ .()/\u00a0\u2010-\u2013-]{0,2}[0-9]){6,}")


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
        for place in find_phones(text, start, end):
            yield "phone", *place


_CARD = re.compile(
    NOT_BEFORE
    + r"(?:[0-9]{12,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{2,4}(?:\1[0-9]{3})?|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})"
    + NOT_AFTER
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


_SSN = re.compile(
    NOT_BEFORE
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
