"""Personal data and secrets: by hand, against labelled text, and properties of the replacement.

Every number and key here is invented or a published example; none belongs to anybody.
"""

import base64
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.pii.find import PLACEHOLDERS, TYPES, PIIParams, Span, find_pii, replace_pii
from llm.data.pii.numbers import IBAN_LENGTHS, passes_luhn, passes_mod97
from llm.data.pii.report import PATTERNS, measure_pii, read_labelled

SHARED = Path(os.environ.get("GRISTMILL_SHARED_DATA") or Path(__file__).parents[4] / "shared" / "data")


def noise(size: int, seed: str = "key") -> str:
    """Return letters and digits that look random; made here, so that no scanner takes this file for a leak."""
    digest = hashlib.blake2b(seed.encode()).digest() * (size // 40 + 1)
    return "".join(char for char in base64.b64encode(digest).decode() if char.isalnum())[:size]


@pytest.mark.parametrize(
    "text, replaced",
    [
        ("Mail a.b+c@mail.example.co.uk, or 'joe@ex.com'.", "Mail <EMAIL>, or '<EMAIL>'."),
        ("o'brien@ex.ie müller@bücher.example", "<EMAIL> <EMAIL>"),
        ("see 10.0.0.1:80, 192.168.0.0/16.", "see <IP>:80, <IP>/16."),
        ("2001:db8::1 fe80::1ff:fe23:4567:890a ::ffff:10.1.2.3", "<IP> <IP> <IP>"),
        ("1:2:3:4:5:6:7:8", "<IP>"),
        ("My card is 4111 1111 1111 1111, valid thru 12/27", "My card is <CREDIT_CARD>, valid thru 12/27"),
        ("cc 4222222222222", "cc <CREDIT_CARD>"),
        ("3782-822463-10005 and 5555555555554444", "<CREDIT_CARD> and <CREDIT_CARD>"),
        ("pay to GB82 WEST 1234 5698 7654 32 today", "pay to <IBAN> today"),
        ("de89370400440532013000, NO9386011117947", "<IBAN>, <IBAN>"),
        ("SSN: 078-05-1120", "SSN: <SSN>"),
        ("my social security number is 078 05 1120", "my social security number is <SSN>"),
        ("ITIN 912-70-1234", "ITIN <SSN>"),
    ],
)
def test_replaced(text: str, replaced: str) -> None:
    assert replace_pii(text)[0] == replaced


@pytest.mark.parametrize(
    "text",
    [
        "+420 601 123 456", "+49(0)8912345678", "(0211) 1234567", "0211/1234567", "+33 (0)1 40 20 50 50",
        "01 40 20 50 50", "01.40.20.50.50", "+39 06 6982 1234", "Tel: 22 123 45 67", "8 (495) 123-45-67",
        "08-123 456 78", "Ring me: 22 33 44 55", "+45 20 12 34 56", "+36 30 123-4567", "090-1234-5678",
        "手机: 13812345678", "010-1234-5678", "+90(532)123-4567", "(11) 98765-4321", "+919876543210", "06 12345678",
        "415 555 2671", "(415)555-2671 ext. 12", "1-800-555-0199", "415.555.2671x33", "0044 20 7946 0958",
        "00 49 30 901820", "Telefon: 030 901820", "Fax +43 1 234 5678", "020 7946 0958", "tel:+14155552671",
        "Phone 555-0199", "mobile 0412 345 678", "1300 123 456 phone", "+41 44 668 18 00", "call 6123 4567",
        "+972-52-123-4567", "082 123 4567", "Please text me at 212-555-0187", "Phone:\n71 23 45 67",
        "?mobile=09123456789",
    ],
)  # fmt: skip
def test_telephone_numbers_of_many_countries(text: str) -> None:
    found = find_pii(text)
    assert [one.type for one in found] == ["phone"]
    first = min(place for place, char in enumerate(text) if char in "+(" or char.isdigit())
    assert found[0].start == first
    assert replace_pii(text)[0].count("<PHONE>") == 1
    assert not any(char.isdigit() for char in replace_pii(text)[0])


@pytest.mark.parametrize(
    "text",
    [
        "user@host @decorator x[::2] std::add 12:30:45 300.1.1.1 1.2.3.4.5 git@github.com",
        "section 3.4.1.1, §4.2.3.1, version 1.2.3.4, pip install foo==1.2.3.4, foo-1.2.3.4.tar.gz",
        "released on 2024-01-15 12:30:45.123456, 20240115 123045, 01/02/2003 12:30, 15.01.2024",
        "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e",
        "0x1234567890abcdef 3.141592653589793 1e-10 -2147483648 +2147483647 1,234,567.89",
        "array([1, 2, 3, 4, 5, 6, 7]) [1.0 2.0 3.0 4.0 5.0] range(1000000, 2000000)",
        "00:1A:2B:3C:4D:5E 00-1A-2B-3C-4D-5E 00 01 02 03 04 05 01:23:45:67:89:ab:cd:ef",
        "J. Phys. 12 (34), 1234-1256 (1998) 1234-1256, pp. 123-145, ISBN 978-3-16-148410-0, 10.1145/3292500.3330701",
        "call f(1234567), call 1 000 000 times, messages 1000000 of 2000000, the text 91.1876/2.4952",
        "call it a sum: 2000-1000 = 1000, 1000000 / 2 phones, $ 2500 - 1500, calls: 1000 * 2000-1500=<<1000-200>>",
        "order 1234567890123456, time 1589478578000, 4111111111111112, seed 348932549825235",
        "GB82WEST12345698765431 XX89370400440532013000 int64 float32 utf16le",
        "666-12-3456 000-12-3456 123-00-4567 123-45-0000 078 05 1120 license 2270-66-1551",
        "password = get_password_from_keyring() token: SomeVeryLongClassNameOfToken",
        "secret = 'xxxxxxxxxxxxxxxxxxxxxxxx' api_key=\"YOUR_API_KEY_GOES_HERE_123\" sk-estimator-doc-link-fitted",
        "sha256 = 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "starts with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----",
    ],
)
def test_left_alone(text: str) -> None:
    assert find_pii(text) == []


KEYS = {
    "AKIA" + noise(16).upper(): "api_key",
    "ghp_" + noise(36): "api_key",
    "github_pat_" + noise(22) + "_" + noise(40): "api_key",
    "xoxb-123456789012-" + noise(24): "api_key",
    "AIza" + noise(35): "api_key",
    "sk-proj-" + noise(40): "api_key",
    "sk-" + noise(48): "api_key",
    "sk_live_" + noise(24): "api_key",
    "hf_" + "qWeRtYuIoPaSdFgHjKlZxCvBnMqWeRtYuI": "api_key",
    f"eyJ{noise(20)}.eyJ{noise(30)}.{noise(43)}": "api_key",
    f'API_KEY = "{noise(32)}"': "secret",
    f"client_secret: {noise(24)}": "secret",
    f"aws_secret_access_key={noise(20)}/{noise(19)}": "secret",
    f"Authorization: Bearer {noise(30)}": "secret",
    f'{{"password": "{noise(20)}"}}': "secret",
    f"-----BEGIN RSA PRIVATE KEY-----\n{noise(64)}\n{noise(64)}\n-----END RSA PRIVATE KEY-----": "private_key",
    f'"-----BEGIN EC PRIVATE KEY-----\\n{noise(64)}\\n-----END EC PRIVATE KEY-----"': "private_key",
    f"-----BEGIN OPENSSH PRIVATE KEY-----\n{noise(70)}\n{noise(70)} cut off": "private_key",
}


@pytest.mark.parametrize("text", KEYS)
def test_keys(text: str) -> None:
    replaced, counts = replace_pii(f"Set {text} here.")
    assert counts == {KEYS[text]: 1}
    assert PLACEHOLDERS[KEYS[text]] in replaced
    assert noise(16) not in replaced


def test_luhn_by_hand() -> None:
    """79927398713, Wikipedia's example: of its ten possible check digits only 3 is right."""
    assert [passes_luhn(f"7992739871{digit}") for digit in range(10)] == [digit == 3 for digit in range(10)]
    assert not passes_luhn("0000000000000000")


def test_mod97_by_hand() -> None:
    """GB82 WEST 1234 5698 7654 32, Wikipedia's example; and one wrong digit anywhere is found."""
    right = "GB82WEST12345698765432"
    assert passes_mod97(right)
    for place in (2, 3, *range(8, 22)):
        wrong = right[:place] + str((int(right[place]) + 1) % 10) + right[place + 1 :]
        assert not passes_mod97(wrong)
        assert find_pii(wrong) == []
    assert IBAN_LENGTHS["GB"] == len(right)


def test_counts_and_choice_of_types() -> None:
    text = "a@b.org, c@d.org at 8.8.8.8, call +1 415 555 2671"
    assert replace_pii(text)[1] == {"email": 2, "ip": 1, "phone": 1}
    assert replace_pii(text, PIIParams(types=("ip",))) == (text.replace("8.8.8.8", "<IP>"), {"ip": 1})
    assert replace_pii(text, PIIParams(types=())) == (text, {})
    assert set(PLACEHOLDERS) == set(TYPES)


def test_findings_do_not_overlap() -> None:
    text = "+1 415 555 2671, 4111 1111 1111 1111 token=" + noise(30) + "@example.com 10.0.0.1"
    found = find_pii(text)
    assert all(one.end <= other.start for one, other in zip(found, found[1:], strict=False))
    assert {one.type for one in found} >= {"phone", "credit_card", "ip"}


PIECES = [
    "call ", "phone:", "+1 ", "00", "415 555 2671", "4111 1111 1111 1111", "-", " ", "\n", "@", "a.b", "example.com",
    "10.0.0.1", "::1", "fe80::1:2", "GB82 WEST 1234 5698 7654 32", "078-05-1120", "token=", "key: ", noise(20),
    "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "<PHONE>", "(0)", "x12", "é", "1", "22", "．",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=80))
def test_replacing_twice_changes_nothing_more(text: str) -> None:
    once, _ = replace_pii(text)
    assert find_pii(once) == []
    assert replace_pii(once) == (once, {})


@pytest.mark.parametrize("piece", ["1 ", "-----BEGIN PRIVATE KEY-----", "a@", ":", "1.", "1:", "key=", "00 1-(", "eyJ"])
def test_long_hostile_text_takes_linear_time(piece: str) -> None:
    """A quadratic pattern would need minutes for this, and the test's time limit would end it."""
    text = piece * (400_000 // len(piece))
    replace_pii(text)


def test_scores_by_hand() -> None:
    text = "Ann: a@b.org, 8.8.8.8"
    scores = measure_pii([(text, [Span("PERSON", 0, 3), Span("EMAIL_ADDRESS", 5, 12), Span("EMAIL_ADDRESS", 14, 21)])])
    email, ip, person = scores["EMAIL_ADDRESS"], scores["IP_ADDRESS"], scores["PERSON"]
    assert (email.labelled, email.found, email.masked, email.precision, email.recall) == (2, 1, 2, 1.0, 0.5)
    assert (ip.labelled, ip.recall, ip.precision) == (0, None, 0.0)
    assert (person.recall, person.precision) == (0.0, None)


def test_labelled_sentences() -> None:
    """Recall and precision of at least 0.95 for each type that has a form; the others are reported too."""
    path = SHARED / "presidio-pii" / "synth_dataset_v2.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent: the labelled sentences are not part of the project")
    rows = read_labelled(path)
    scores = measure_pii(rows)
    assert set(scores) >= {one.type for _, spans in rows for one in spans}
    for name in PATTERNS:
        assert (scores[name].recall or 0) >= 0.95, name
        assert (scores[name].precision or 0) >= 0.95, name
