"""Find private keys, API keys of known issuers, and random strings that are assigned to a name such as `api_key`.

A known issuer's key is known by its prefix. Any other string counts as a secret only after such a name, and only when
it looks random: without the name, hashes, UUIDs and encoded data would be found too.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

_EDGE = r"(?<![A-Za-z0-9_-])"
# The literal that a text must hold -> the form of the keys. Those that may lack digits between letters come first.
PLAIN_KEYS = {
    literal: re.compile(_EDGE + pattern)
    for literal, pattern in {
        "AKIA": r"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS, long-lived
        "ASIA": r"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS, temporary
        "hf_": r"hf_[A-Za-z]{34}(?![A-Za-z0-9])",
    }.items()
}
API_KEYS = {
    literal: re.compile(_EDGE + pattern)
    for literal, pattern in {
        "ghp_": r"ghp_[A-Za-z0-9]{36,}",
        "gho_": r"gho_[A-Za-z0-9]{36,}",
        "ghu_": r"ghu_[A-Za-z0-9]{36,}",
        "ghs_": r"ghs_[A-Za-z0-9]{36,}",
        "ghr_": r"ghr_[A-Za-z0-9]{36,}",
        "github_pat_": r"github_pat_\w{36,}",
        "glpat-": r"glpat-[\w-]{20,}",
        "xox": r"xox[abeoprs]-(?:[0-9A-Za-z]+-)*[0-9A-Za-z]{10,}",  # Slack
        "xapp-": r"xapp-[0-9]-[A-Z0-9]+-[0-9]+-[0-9a-f]{20,}",
        "hooks.slack.com": r"https://hooks\.slack\.com/services/T\w+/B\w+/\w{16,}",
        "AIza": r"AIza[\w-]{35}(?![\w-])",  # Google
        "GOCSPX-": r"GOCSPX-[\w-]{28}",
        "ya29.": r"ya29\.[\w-]{30,}",
        "sk-": r"sk-(?:[a-z]{2,8}[0-9]{0,2}-){0,3}[\w-]{20,}",  # OpenAI, Anthropic and others
        "_live_": r"(?:sk|rk|pk)_live_[A-Za-z0-9]{16,}",  # Stripe
        "sk_test_": r"sk_test_[A-Za-z0-9]{16,}",
        "whsec_": r"whsec_[A-Za-z0-9+/=]{24,}",
        "npm_": r"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])",
        "pypi-AgE": r"pypi-AgE[\w-]{50,}",
        "SG.": r"SG\.[\w-]{20,24}\.[\w-]{39,50}",  # SendGrid
        "dop_v1_": r"dop_v1_[0-9a-f]{64}",
        "shpat_": r"shpat_[0-9a-fA-F]{32}",
        ":AA": r"[0-9]{8,10}:AA[\w-]{32,34}(?![\w-])",  # Telegram
        "eyJ": r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}",  # JSON web token, signed
    }.items()
}
ALL_KEYS = PLAIN_KEYS | API_KEYS
_MIXED = re.compile("[0-9][A-Za-z]")
_PEM = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(r"(?:[A-Za-z0-9+/=]{16,}|[\s\"'+,]|\\n|\\r)*")
PEM_CHARS = 20_000  # an RSA key of 16,384 bits has 13,000
_ASSIGNED = re.compile(r"[:=]\s{0,3}[\"'`]?(?:(?:Bearer|Basic|Token)\s)?[\"'`]?([A-Za-z0-9_+/.~=-]{16,512})")
_NAME = re.compile(
    r"(?:(?:api|access|account|private|signing|encryption|secret|shared|auth|service|master|license)[_ -]?key"
    r"(?:[_ -]?id)?"
    r"|apikey|secret|token|passw(?:or)?d|passphrase|pwd|credentials?|authorization)[\"'`\])]{0,2}\s{0,3}\Z",
    re.IGNORECASE,
)
MIN_ENTROPY_BITS = 3.2  # per character: 16 random letters and digits have 3.7, words of a language 2.5 to 3.2
MIN_RANDOM_CHARS = 12


def find_secrets(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield (type, start, end); findings may overlap."""
    if "-----BEGIN " in text:
        for start, end in _find_private_keys(text):
            yield "private_key", start, end
    # A digit before a letter is in nearly every random key, and in one text of ten.
    for literal, pattern in (ALL_KEYS if _MIXED.search(text) else PLAIN_KEYS).items():
        if literal in text:
            for match in pattern.finditer(text):
                if _is_random(match[0], only_letters=True):
                    yield "api_key", *match.span()
    for match in _ASSIGNED.finditer(text):
        start, end = match.span(1)
        if text[end - 1] == ".":
            end -= 1  # the end of a sentence
        if (
            _NAME.search(text, max(0, match.start() - 40), match.start())
            and _is_random(text[start:end])
            and text[end : end + 1] not in ("(", "[")
        ):
            yield "secret", start, end


def _find_private_keys(text: str) -> Iterator[tuple[int, int]]:
    """Yield PEM blocks, also those that are cut off; a mere mention of the header line is none."""
    for header in _PEM.finditer(text):
        dashes = text.find("-----", header.end(), header.end() + PEM_CHARS)
        end = _PEM_END.match(text, dashes) if dashes >= 0 else None
        if end:
            size, stop = dashes - header.end(), end.end()
        else:
            body = _PEM_BODY.match(text, header.end(), header.end() + PEM_CHARS)
            assert body is not None
            size, stop = len(body[0].strip()), header.end() + len(body[0].rstrip())
        if size >= 40:
            yield header.start(), stop


def _is_random(value: str, only_letters: bool = False) -> bool:
    """Tell random strings from names and paths: a long piece with letters and digits, and high entropy.

    Args:    only_letters: a long piece of letters will do when they are not all small ones.
    """

    def mixed(piece: str) -> bool:
        return not piece.isdigit() and not (piece.isalpha() and (piece.islower() or not only_letters))

    if not any(len(one) >= MIN_RANDOM_CHARS and mixed(one) for one in re.split(r"[_./-]", value)):
        return False
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts) >= MIN_ENTROPY_BITS
