import pytest

from llm.data.tokenizer import Tokenizer
from llm.serve.text import TextStream, find_stop, longest_start, make_printable

BYTES = [bytes([i]) for i in range(256)]


def run(text: str | bytes, stops: list[str] = [], size: int = 1) -> tuple[list[str], TextStream]:  # noqa: B006
    data = text.encode() if isinstance(text, str) else text
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    stream = TextStream(pieces, stops)
    given = []
    for token in range(len(pieces)):
        given.append(stream.feed(token))
        if stream.stopped:
            break
    given.append(stream.finish())
    return given, stream


def test_characters_are_held_back_until_their_bytes_are_complete() -> None:
    given, _ = run("aé€😀")
    assert given == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]


def test_invalid_bytes_become_replacement_characters() -> None:
    given, _ = run(b"a\xffb\xe2\x82")
    assert "".join(given) == "a�b�"
    assert given[-1] == "�"  # the unfinished character comes out at the end only


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"\xf0\x9f\x98", b"\xe2\x82\xff", b"\xc0\x80", b"ok\x80ok", "a€".encode()]
)
def test_invalid_bytes_decode_as_the_tokenizer_decodes_them(data: bytes, tokenizer: Tokenizer) -> None:
    token_bytes = tokenizer.token_bytes()
    ids = [token_bytes.index(bytes([byte])) for byte in data]
    stream = TextStream(token_bytes)
    assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids)


def test_special_and_padding_ids_have_no_text(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer.token_bytes())
    ids = [tokenizer.im_start_id, tokenizer.im_end_id, tokenizer.eos_id, tokenizer.vocab_size + 5]
    assert "".join(map(stream.feed, ids)) + stream.finish() == ""
    assert stream.num_tokens == 4


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_stop_string_is_never_shown_however_tokens_cut_it(size: int) -> None:
    given, stream = run("one two STOP three", ["STOP"], size)
    assert stream.stopped
    assert "".join(given) == "one two "
    assert all("S" not in piece for piece in given)


def test_start_of_a_stop_string_that_does_not_come_is_given_out() -> None:
    given, stream = run("one STO", ["STOP"])
    assert not stream.stopped
    assert "".join(given) == "one STO"
    assert given[-1] == "STO"


def test_stop_string_may_cross_characters_of_many_bytes() -> None:
    given, stream = run("a€€b", ["€b"])
    assert stream.stopped
    assert "".join(given) == "a€"


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_first_complete_stop_string_wins_whatever_arrives_together(size: int) -> None:
    given, _ = run("xabcdy", ["abcd", "bc"], size)
    assert "".join(given) == "xa"


def test_find_stop_takes_the_longest_of_those_that_end_together() -> None:
    assert find_stop("xabc", ["c", "abc"]) == 1
    assert find_stop("xabc", ["d"]) is None
    assert find_stop("xabc", []) is None


def test_longest_start_overlaps_itself() -> None:
    assert longest_start("aab", ["abab"]) == 2
    assert longest_start("abab", ["ababc"]) == 4
    assert longest_start("abc", ["x"]) == 0
    assert longest_start("abc", []) == 0


def test_control_characters_cannot_reach_a_terminal() -> None:
    assert make_printable("a\x1b[31mb\n\tc\x9b") == "a�[31mb\n\tc�"
