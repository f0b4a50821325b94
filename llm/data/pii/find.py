"""Find personal data and secrets by their form, and put typed placeholders such as <EMAIL> in their place.

E-mail and IP addresses here, numbers in pii_numbers and pii_phones, keys in pii_secrets. What has
no form of its own is not looked for: names, postal addresses, dates of birth, organisations.
`replace_pii` is idempotent: it goes on until nothing is found. Cheap tests come first, because most texts hold nothing.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from pydantic import Field

from llm.config import BaseParams
from llm.data.pii.numbers import find_ibans, find_numbers
from llm.data.pii.secrets import find_secrets

PIIType = Literal["email", "ip", "phone", "credit_card", "iban", "ssn", "private_key", "api_key", "secret"]
TYPES: tuple[PIIType, ...] = get_args(PIIType)
PLACEHOLDERS: dict[str, str] = {name: f"<{name.upper()}>" for name in TYPES}
# Where two overlap, the earlier of this list is right: what a checksum or a marker confirms comes first.
RANK = {name: rank for rank, name in enumerate(
    ("private_key", "api_key", "secret", "email", "iban", "credit_card", "ip", "ssn", "phone"))}  # fmt: skip
NUMBERS = frozenset(("phone", "credit_card", "ssn"))
SECRETS = frozenset(("private_key", "api_key", "secret"))


class PIIParams(BaseParams):
    """What is looked for."""

    types: tuple[PIIType, ...] = Field(TYPES, description="kinds of personal data and secrets that are replaced")


class Span(NamedTuple):
    """One finding: `text[start:end]` is of this type."""

    type: str
    start: int
    end: int


DEFAULT = PIIParams()
_DIGIT = re.compile("[0-9]")


def replace_pii(text: str, params: PIIParams = DEFAULT) -> tuple[str, Counter[str]]:
    """Return the text with a placeholder for each finding, and how many of each type were replaced."""
    counts: Counter[str] = Counter()
    # Once more after each replacement: a placeholder is shorter, so that a word may come near enough to be a context.
    while spans := find_pii(text, params):
        pieces, done = [], 0
        for span in spans:
            pieces += [text[done : span.start], PLACEHOLDERS[span.type]]
            done = span.end
        text = "".join([*pieces, text[done:]])
        counts.update(span.type for span in spans)
    return text, counts


def find_pii(text: str, params: PIIParams = DEFAULT) -> list[Span]:
    """Return what is found, in order of place, without overlaps."""
    wanted = set(params.types)
    found: list[Span] = []
    if "email" in wanted and "@" in text:
        found += (Span("email", *place) for place in _find_emails(text))
    digit = _DIGIT.search(text)
    if digit is not None:  # all numbers begin at one, and two texts of three hold none
        first = digit.start()
        if "ip" in wanted:
            found += (Span("ip", *place) for place in _find_ipv4(text, first))
            if text.count(":") > 1:
                found += (Span("ip", *place) for place in _find_ipv6(text))
        if "iban" in wanted:
            found += (Span("iban", *place) for place in find_ibans(text, first))
        if wanted & NUMBERS:
            found += (Span(*one) for one in find_numbers(text, first) if one[0] in wanted)
    if wanted & SECRETS and (digit is not None or "hf_" in text):
        found += (Span(*one) for one in find_secrets(text) if one[0] in wanted)
    return _drop_overlaps(found) if len(found) > 1 else found


def _drop_overlaps(spans: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, RANK[one.type], -one.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
        elif RANK[span.type] < RANK[kept[-1].type]:
            kept[-1] = span  # it begins within the one that it replaces, so it meets none before that
    return kept


_LOCAL = re.compile(r"(?<![\w.+%-])\w[\w.+%'-]{0,63}(?<![.'])\Z")
_DOMAIN = re.compile(r"(?:\w(?:[\w-]{0,61}\w)?\.){1,8}[^\W\d_][\w-]{0,22}[^\W_]")


def _find_emails(text: str) -> Iterator[tuple[int, int]]:
    """Yield e-mail addresses. `git@host` names a service, and is left."""
    at = text.find("@")
    while at >= 0:
        # Most at-signs are decorators, with nothing before them.
        before = text[at - 1 : at]
        if (before.isalnum() or before in ("_", "+", "%", "-")) and (domain := _DOMAIN.match(text, at + 1)):
            local = _LOCAL.search(text, max(0, at - 64), at)
            if local and local[0] != "git":
                yield local.start(), domain.end()
        at = text.find("@", at + 1)


_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:])")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_HEX = frozenset("0123456789abcdefABCDEF")
# What looks like an IPv4 address after these is the number of a section or a version, or a part of a file's name.
_NUMBERED = re.compile(
    r"(\bsec(tion|t?\.)?s?|\bparts? \w+|\bversions?|§|[=<>~]=|#section-)[ \n]*[\"'`]*$|[A-Za-z]-$", re.IGNORECASE
)


def _find_ipv4(text: str, first: int) -> Iterator[tuple[int, int]]:
    for match in _IPV4.finditer(text, first):
        start, end = match.span()
        before = text[start - 1 : start]
        if before == "." or before == "_" or before.isalnum() or not _is_address(match[0]):
            continue
        if not _NUMBERED.search(text, max(0, start - 20), start):
            yield start, end


def _find_ipv6(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    for colons in _COLONS.finditer(text):
        start = colons.start()
        if start < done:
            continue
        while start > done and start > colons.start() - 5 and text[start - 1] in _HEX:
            start -= 1
        match = _IPV6.match(text, start)
        if match:
            done = match.end()
            if _is_address(match[0]):
                yield match.span()


def _is_address(candidate: str) -> bool:
    """Tell addresses from slices, times and C++ names: a short IPv6 form must open with a group that has a digit."""
    try:
        ipaddress.ip_address(candidate)
    except ValueError:
        return False
    if ":" not in candidate:
        return True
    groups = [group for group in candidate.split(":") if group]
    if candidate.count(":") == 7 and "::" not in candidate:
        return any(len(group) != 2 for group in groups)  # eight bytes with colons are a hardware address
    return len(groups) >= 2 and len(groups[0]) >= 3 and any(c.isdigit() for c in "".join(groups))
