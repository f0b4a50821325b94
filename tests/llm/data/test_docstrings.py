"""Docstrings and what is taken out of them."""

import pytest

from llm.data.builtin.docstrings import extract_entries, parse_arguments, parse_returns, split_sentences, summarise

SOURCE = '''
"""A module about mills."""

class Mill:
    """Grinds grain."""

    def turn(self, speed, *stones, slow=False, **rest):
        """Turn the wheel once."""

if True:
    async def wait(hours):
        """Wait for the water."""

def bare(x):
    return x

def odd():
    """Half a pair: \\ud800."""
'''


def test_entries_of_a_module() -> None:
    entries = extract_entries(SOURCE)
    assert [(e.kind, e.name) for e in entries] == [
        ("module", ""),
        ("class", "Mill"),
        ("method", "Mill.turn"),
        ("function", "wait"),
        ("function", "odd"),
    ]
    assert entries[2].parameters == ("speed", "*stones", "slow", "**rest")
    assert entries[4].text == "Half a pair: ?."


@pytest.mark.parametrize("source", ['def broken(:\n  """x"""', '"""x"""\0', "(" * 10_000 + '"""x"""'])
def test_source_that_does_not_parse_gives_nothing(source: str) -> None:
    assert extract_entries(source) == []


def test_nothing_is_run() -> None:
    assert extract_entries('raise SystemExit\ndef f():\n    """Never run at all."""')[0].name == "f"


def test_sentences_do_not_end_at_abbreviations() -> None:
    assert split_sentences("Reads files, e.g. text. By J. Doe et al. in 1970. Done") == [
        "Reads files, e.g. text.",
        "By J. Doe et al. in 1970.",
        "Done",
    ]


@pytest.mark.parametrize(
    "docstring, summary",
    [
        ("Return a :class:`~json.JSONDecoder` for ``text``.  More.", "Return a `json.JSONDecoder` for `text`."),
        ("Wrap the\n    lines of text.\n\nMore.", "Wrap the lines of text."),
        ("Too short.", ""),
        ("open(file) -> file object for reading", ""),
        ("image_ids (`Tensor`): The ids of the images.", ""),
        ("word " * 60, ""),
    ],
)
def test_summaries(docstring: str, summary: str) -> None:
    assert summarise(docstring) == summary


GOOGLE = """Do.

Args:
    x (int): The first number. Not zero.
    *rest: Others,
        on two lines.

Returns:
    int: The sum of all."""
NUMPY = """Do.

Parameters
----------
x : int
    The first number. Not zero.
*rest : ints
    Others,
    on two lines.

Returns
-------
int
    The sum of all."""
SPHINX = """Do.

:param int x: The first number. Not zero.
:param rest: Others, on two lines.
:returns: The sum of all."""


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, SPHINX], ids=["google", "numpy", "sphinx"])
def test_arguments_and_result_in_three_styles(docstring: str) -> None:
    found = [(name.lstrip("*"), text) for name, text in parse_arguments(docstring)]
    assert found == [("x", "The first number."), ("rest", "Others, on two lines.")]
    assert parse_returns(docstring) == "The sum of all."


def test_no_sections() -> None:
    assert parse_arguments("Just a sentence.") == []
    assert parse_returns("Just a sentence.") == ""
