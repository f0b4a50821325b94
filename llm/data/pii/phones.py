"""Find telephone numbers of any country, in the form in which people write them.

There is no checksum. With +, 00, a North American form or a leading 0 the form is enough; other groups of digits count
only beside a word such as "call". phonenumbers' matcher was tried on 750 labelled sentences: without a country given it
finds 4 % of the numbers, with 18 countries 82 % at a precision of 51 %, at 0.1 to 1.7 MB/s.

Source: E.164 (country codes, at most 15 digits).
"""

import re
from collections.abc import Iterator

NOT_BEFORE = r"(?<![\w.+])(?<!\w[-/])"
NOT_AFTER = r"(?!\w|[-./][0-9])"
_BETWEEN = r"(?:[ \u00a0]?\(|\)[ \u00a0./-]?|[ .\u00a0\u2010-\u2013/-])?"
_EXTENSION = r"(?:[ ,;]{0,2}(?:x|ext\.?|extension|#)[ .:]{0,2}[0-9]{1,6})?"
_DASH = r"[ .\u00a0\u2010-\u2013-]"
_PLUS = re.compile(r"(?<![\w.+])\+\(?[1-9](?:" + _BETWEEN + r"[0-9]){7,14}(?![0-9])" + _EXTENSION + NOT_AFTER)
_ZERO_ZERO = re.compile(NOT_BEFORE + r"00[ -]?[1-9][0-9]{0,2}(?:" + _BETWEEN + r"[0-9]){7,12}" + _EXTENSION + NOT_AFTER)
_NANP = re.compile(
    NOT_BEFORE + r"(?:1[ .-])?(?:\([2-9][0-9]{2}\)" + _DASH + r"?|[2-9][0-9]{2}(" + _DASH + r"))"
    r"[2-9][0-9]{2}" + _DASH + r"[0-9]{4}" + _EXTENSION + NOT_AFTER
)  # fmt: skip
_TRUNK = re.compile(
    r"(?<![\w.+])(?<!\w[-/])(?<![0-9][ ])\(?0[1-9][0-9]{0,3}(?:\)[ ]?|[ ./\u2010-\u2013-])"
    r"[0-9]{2,8}(?:([ .\u2010-\u2013-])[0-9]{2,4}(?:\1[0-9]{2,4}){0,3})?(?![ ]?[0-9])" + NOT_AFTER
)
# E.164 country codes.
_COUNTRY = re.compile(
    r"[17]|2(?:0|7|1[123689]|[2346][0-9]|5[0-8]|9[01789])|3(?:[0-469]|5[0-9]|7[0-8]|8[0-35-79])|4(?:[013-9]|2[013])"
    r"|5(?:[1-8]|0[0-9]|9[0-9])|6(?:[0-6]|7[0-9]|8[0-35-9]|9[0-2])|8(?:[1246]|0[08]|5[02356]|7[0-8]|8[0-8])"
    r"|9(?:[0-58]|6[0-8]|7[0-79]|9[2-68])"
)
_AREA = re.compile(
    NOT_BEFORE + r"(?:[78][ ]?|(?<![0-9][ ]))\((?!19|20)[0-9]{2,5}\)[ ]?"
    r"[0-9]{2,5}([ .\u2010-\u2013-])[0-9]{2,4}(?:\1[0-9]{2,4})?" + NOT_AFTER
)  # fmt: skip
_STRONG = (
    r"(?:tele|smart|cell)?phones?|tel(?:ephone|efon\w*|efax|éfono|efoon)?|t[ée]l(?:[ée]phone|s)?|tlf|fon|mob(?:ile?|iles"
    r"|il\w*)?|m[óo]vil|cell?(?:ular\w*)?|handy(?:nummer)?|rufnummer|portable|fax|whats?app|viber|sms|hot-?line|help-?line"
    r"|voice-?mail|land-?line|pager|puhelin\w*|gsm|тел\w*|факс|моб\w*|τηλ\w*|κιν\w*|電話|电话|電話番号|手机|携帯|전화|휴대폰|هاتف|טלפון"
)
_WEAK = (
    r"call(?:s|ed|ing)?|dial(?:s|l?ed|l?ing)?|ring|rang|text(?:ed|ing)? (?:me|us|him|her|them|at|back)|answering"
    r"|messag(?:es?|ed|ing)|contact\w*"
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
_SUM_BEFORE = re.compile(r"(?:(?<![A-Za-z_])=|[*<>^$€£])[ ]?\Z|[+/×][ ]\Z")
_SUM_AFTER = re.compile(r"[ ]?[=*<>^%€£+×]|,[0-9]{3}|[ ]/")
CONTEXT_CHARS = 40


def find_phones(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
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
    if before[-1:].isalnum() or before[-1:] in ("_", ".") or (before[-1:] in ("-", "/") and before[:1].isalnum()):
        return False
    if len(set(re.findall(r"[./-]", text[start:end]))) > 1 or re.search(r"[./-] | [./-]", text[start:end]):
        return False  # sums and fractions
    if _SUM_BEFORE.search(text, max(0, start - 3), start) or _SUM_AFTER.match(text, end):
        return False
    after = text[end : end + 2]
    if (after[:1].isalnum() and after[:1] != "x") or after[:1] == "_" or _DATE.match(text, start, end):
        return False
    words = _STRONG_WORD if len(groups) == 1 else _ANY_WORD
    return (
        words.search(text, max(0, start - CONTEXT_CHARS), start) is not None
        or _WORD_AFTER.match(text, end, end + 20) is not None
    )
