"""The search for what clean has left: it finds every form, agrees with clean, and is no part of it."""

import inspect
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.pii import residue
from llm.data.pii.find import TYPES, replace_pii
from llm.data.pii.residue import PATTERNS, ResidueType, count_residue, find_residue, is_iban, is_luhn, is_ssn

# Published examples: RFC 5737, ISO 13616, card networks' test numbers, SSA, AWS and GitHub documentation.
FOUND: dict[ResidueType, list[str]] = {
    "email": ["a@b.org", "jane.doe+x@mail.example.com", "(root@localhost.localdomain)", "x\nme@a-b.co\n"],
    "ip": ["the host 192.0.2.17 is down", "IP address: 203.0.113.5.", "ping 198.51.100.250"],
    "phone": ["call +1 415-555-2671 now.", "+1 (212) 736-5000"],
    "credit_card": ["paid by 4111 1111 1111 1111.", "5500-0000-0000-0004"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "to DE89370400440532013000 please"],
    "ssn": ["SSN: 219-09-9999", "social security number 457-55-5462"],
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEAwJ8r3kq9bX2V" * 3],
    "api_key": ['key = "AKIAIOSFOD2345EXAMPL"', "ghp_abcdEFGHijkl012345678901mnopqrstuvwx"],
}
LEFT: dict[ResidueType, list[str]] = {
    "email": ["a @ b.org", "@property.setter", "matrix@other.T", "user@host", "x@a-.org", "<EMAIL>"],
    "ip": ["version 1.2.3.4", "section 10.0.0.1 says", "host 300.1.1.1", "1.2.3.4.5"],
    "phone": ["+1 2 3", "1234567890"],
    "credit_card": ["4111 1111 1111 1112", "serial 4111 1111 1111 1111-7"],
    "iban": ["GB83 WEST 1234 5698 7654 32", "DE89 3704"],
    "ssn": ["219-09-9999", "SSN: 000-12-3456", "SSN: 219-00-9999"],
    "private_key": ["-----BEGIN PUBLIC KEY-----", "a line `-----BEGIN PRIVATE KEY-----` comes first"],
    "api_key": ["AKIA", "ghp_short"],
}


def test_every_type_of_clean_is_searched_but_what_only_a_name_gives_away() -> None:
    assert set(get_args(ResidueType)) == set(PATTERNS) == set(FOUND) == set(LEFT) == {*TYPES} - {"secret"}


@pytest.mark.parametrize("name", FOUND)
def test_forms_are_found_and_clean_replaces_them(name: ResidueType) -> None:
    for text in FOUND[name]:
        assert find_residue(text, name) == 1, text
        assert find_residue(replace_pii(text)[0], name) == 0, replace_pii(text)[0]
    for text in LEFT[name]:
        assert find_residue(text, name) == 0, text


@pytest.mark.parametrize("name", PATTERNS)
def test_whatever_is_found_clean_replaces(name: ResidueType) -> None:
    """Else a faultless run of clean would stop the DAG."""

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(st.from_regex(PATTERNS[name].replace(r"\d", "[0-9]"), fullmatch=True), st.text(max_size=4))
    def check(form: str, around: str) -> None:
        text = f"{around} {form} {around}"
        assert find_residue(replace_pii(text)[0], name) == 0, text

    check()


def test_a_column_is_searched_at_once() -> None:
    texts = [text for texts in FOUND.values() for text in texts] + [None, "", "a@b.org, c@d.org"]
    counts = count_residue(pa.array(texts))
    for name, found in counts.items():
        assert found.tolist() == [find_residue(text or "", name) for text in texts]
    assert counts["email"][-1] == 2


def test_check_digits() -> None:
    assert is_luhn("79927398713")  # the example of ISO/IEC 7812-1's own algorithm
    assert not any(is_luhn(f"7992739871{digit}") for digit in "012456789")
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("GB82WEST12345698765423")
    assert is_ssn("219-09-9999")
    assert not any(map(is_ssn, ("000-12-3456", "666-12-3456", "900-12-3456", "123-00-1234", "123-45-0000")))


def test_it_shares_no_code_with_what_it_checks() -> None:
    assert "llm.data" not in inspect.getsource(residue).split('"""', 2)[2]
