"""Replace e-mail addresses and IP addresses by the placeholders <EMAIL> and <IP>.

Addresses are found by their form alone: names, telephone numbers and postal addresses are not looked for.
"""

import ipaddress
import re

EMAIL, IP = "<EMAIL>", "<IP>"

_EMAIL = re.compile(r"(?<![\w.+%-])\w[\w.+%'-]{0,63}(?<![.'])@(?:\w(?:[\w-]{0,61}\w)?\.){1,8}[^\W\d_][\w-]{0,22}[^\W_]")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:])")
# What looks like an IPv4 address after these is the number of a section or a version.
_NUMBERED = re.compile(
    r"(\bsec(tion|t?\.)?s?|\bparts? \w+|\bversions?|§|[=<>~]=|#section-)[ \n]*[\"'`]*$", re.IGNORECASE
)


def replace_pii(text: str) -> tuple[str, int, int]:
    """Return the text with placeholders, and how many e-mail and IP addresses were replaced."""
    emails = addresses = 0
    if "@" in text:
        text, emails = _EMAIL.subn(EMAIL, text)
    if "." in text or ":" in text:
        found = 0

        def replace(match: re.Match[str]) -> str:
            nonlocal found
            if not _is_address(match[0]) or _NUMBERED.search(match.string[max(0, match.start() - 20) : match.start()]):
                return match[0]
            found += 1
            return IP

        text = _IPV6.sub(replace, text) if text.count(":") > 1 else text
        text = _IPV4.sub(replace, text)
        addresses = found
    return text, emails, addresses


def _is_address(candidate: str) -> bool:
    """Tell addresses from slices, times and C++ names: a short IPv6 form must open with a group that has a digit."""
    try:
        ipaddress.ip_address(candidate)
    except ValueError:
        return False
    if ":" not in candidate or candidate.count(":") == 7:
        return True
    groups = [group for group in candidate.split(":") if group]
    return len(groups) >= 2 and len(groups[0]) >= 3 and any(c.isdigit() for c in "".join(groups))
