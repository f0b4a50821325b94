"""Search clean text for personal data that was left behind, independently of the code that replaces it.

Other patterns than those of llm/data/pii/find.py, and narrower: a form is looked for only where clean must have
replaced it, so that a hit is a fault of clean and never a matter of taste; a random string after a word such as
`password`, which clean replaces as <SECRET>, is such a matter. A hit is confirmed by arithmetic where there is
some (Luhn, mod 97, ranges). Patterns run in Arrow (RE2: no look-around, ASCII classes) over whole batches, and once
more in Python over the few texts that they hit.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

ResidueType = Literal["email", "ip", "phone", "credit_card", "iban", "ssn", "private_key", "api_key"]
IBAN_CHARS = {"AT": 20, "BE": 16, "CH": 21, "DE": 22, "ES": 24, "FR": 27, "GB": 22, "IT": 27, "NL": 18, "PL": 28}

# Each has one group, the candidate.
PATTERNS: dict[ResidueType, str] = {
    "email": (
        r"(?:^|[^\w.+%'-])([A-Za-z0-9](?:[\w.+%-]{0,30}[A-Za-z0-9])?"
        r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?\.){1,4}[A-Za-z]{2,18})\b"
    ),
    # Elsewhere four numbers may be a version; after these words they are not.
    "ip": (
        r"\b(?:IP|IPv4|ip|host|ping|server|gateway)(?: address)?(?::? |=)"
        r"(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})(?:[^\w.]|\.\s|\.?$)"
    ),
    "phone": r"(?:^|[^\w.+-])(\+1 (?:[2-9]\d\d-|\([2-9]\d\d\) )[2-9]\d\d-\d{4})(?:[^\w.-]|\.\s|\.?$)",
    # after a plus it is a telephone number's country code
    "credit_card": r"(?:^|[^\w.+-])([45]\d{3}(?: \d{4} \d{4} |-\d{4}-\d{4}-)\d{4})(?:[^\w.-]|\.\s|\.?$)",
    "iban": r"\b((?:AT|BE|CH|DE|ES|FR|GB|IT|NL|PL)\d\d(?: ?[A-Z0-9]{4}){2,6}(?: ?[A-Z0-9]{1,4})?)\b",
    "ssn": r"\b(?:SSN|ssn|[Ss]ocial [Ss]ecurity)[^\d\n]{1,20}(\d{3}-\d\d-\d{4})(?:[^\w-]|$)",
    "private_key": r"(-----BEGIN (?:[A-Z]{2,9} )?PRIVATE KEY-----\n?[A-Za-z0-9+/=]{60})",
    "api_key": r"(?:^|[\s\"'=:(])(AKIA[A-Z]{6}[2-7]{4}[A-Z]{6}|ghp_[A-Za-z]{12}[0-9]{12}[a-z]{12})(?:[^\w-]|$)",
}


def is_luhn(candidate: str) -> bool:
    """Tell whether the digits end in their check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(one) for one in candidate if one.isdigit()][::-1]
    return (sum(digits[::2]) + sum(sum(divmod(2 * one, 10)) for one in digits[1::2])) % 10 == 0


def is_iban(candidate: str) -> bool:
    """Tell whether a number of its country's length has the remainder 1 (ISO 13616, mod 97-10)."""
    compact = candidate.replace(" ", "")[: IBAN_CHARS[candidate[:2]]]
    moved = compact[4:] + compact[:4]
    return len(compact) == IBAN_CHARS[candidate[:2]] and int("".join(str(int(one, 36)) for one in moved)) % 97 == 1


def is_ssn(candidate: str) -> bool:
    """Tell whether the number can have been issued (SSA: no 000, 666 or 9xx, no 00, no 0000)."""
    area, group, serial = candidate.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_ip(candidate: str) -> bool:
    """Tell whether it is an IPv4 address."""
    try:
        ipaddress.IPv4Address(candidate)
    except ValueError:
        return False
    return True


def is_person(candidate: str) -> bool:
    """Tell whether an address is someone's: git@host names a service."""
    return not candidate.startswith("git@")


def is_varied(candidate: str) -> bool:
    """Tell a random string from a row of the same few characters, which is a placeholder."""
    return len(set(candidate)) >= 0.7 * len(candidate)


CONFIRM: dict[ResidueType, Callable[[str], bool]] = {
    "email": is_person,
    "ip": is_ip,
    "credit_card": is_luhn,
    "iban": is_iban,
    "ssn": is_ssn,
    "api_key": is_varied,
}
NEEDED: dict[ResidueType, str] = {
    "email": "@",
    "phone": "+1",
    "private_key": "PRIVATE KEY",
}  # what a text without cannot hold
_COMPILED = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}


def find_residue(text: str, name: ResidueType) -> int:
    """Return how many forms of a type a text holds."""
    confirm = CONFIRM.get(name, lambda _: True)
    return sum(confirm(found[1]) for found in _COMPILED[name].finditer(text))


def count_residue(texts: pa.StringArray) -> dict[str, NDArray[np.int32]]:
    """Return, per type, how many forms each text holds."""
    texts = pc.fill_null(texts, "")
    counts: dict[str, NDArray[np.int32]] = {}
    for name, pattern in PATTERNS.items():
        counts[name] = np.zeros(len(texts), dtype=np.int32)
        places = np.arange(len(texts))
        if name in NEEDED:
            places = np.flatnonzero(pc.match_substring(texts, NEEDED[name]).to_numpy(zero_copy_only=False))
        hits = pc.match_substring_regex(texts.take(pa.array(places)), pattern).to_numpy(zero_copy_only=False)
        for place in places[hits]:
            counts[name][place] = find_residue(texts[int(place)].as_py(), name)
    return counts
