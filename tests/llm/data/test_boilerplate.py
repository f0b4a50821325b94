"""Archives' headers and licences are cut; texts that only speak of them are not."""

from pathlib import Path

import pytest

from llm.data.text.boilerplate import strip_boilerplate
from llm.data.text.encoding import decode_text

BODY = "CHAPTER I\n\nThe mill stood by the river.\n\nIt turned all night.\n\nTHE END"
HEADER = "The Project Gutenberg EBook of The Mill\n\nThis eBook is for the use of anyone.\n\nTitle: The Mill\n\n"
LICENCE = "\n\n\nSection 1. General Terms of Use of Project Gutenberg works. See www.gutenberg.org\n" * 40
SMALL_PRINT = (
    "The Project Gutenberg Etext of The Mill\n\n***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n"
    'Why is this "Small Print!" statement here?\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n'
)


@pytest.mark.parametrize(
    "header, footer",
    [
        (
            HEADER + "*** START OF THIS PROJECT GUTENBERG EBOOK THE MILL ***\n\n",
            "\n\n*** END OF THIS PROJECT GUTENBERG EBOOK THE MILL ***" + LICENCE,
        ),
        (
            HEADER + "***START OF THE PROJECT GUTENBERG EBOOK THE MILL***\n\n\nE-text prepared by A. Person\n\n\n\n",
            "\n\nEnd of the Project Gutenberg EBook of The Mill\n\n*** END OF THE PROJECT GUTENBERG" + LICENCE,
        ),
        (
            HEADER + "*** START OF THE PROJECT GUTENBERG EBOOK THE MILL, OR:\nA TITLE ***\n\nProduced by B. Reader\n\n",
            "\n\n*** END OF THE PROJECT GUTENBERG EBOOK THE MILL, OR: A VERY\nLONG TITLE ***\n" + LICENCE,
        ),
        (SMALL_PRINT, "\n\nEnd of Project Gutenberg's Etext of The Mill\n"),
        (SMALL_PRINT, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_gutenberg_of_every_age(header: str, footer: str, newline: str) -> None:
    text, name = strip_boilerplate((header + BODY + footer).replace("\n", newline))
    assert name == "gutenberg"
    assert text.replace(newline, "\n").strip() == BODY


@pytest.mark.parametrize(
    "wrapped, name",
    [
        (
            "* A Distributed Proofreaders Canada eBook *\n\nThis ebook is made available at no cost.\n\n"
            f"Title: The Mill\n\n{BODY}"
            "\n\n[End of The Mill, by A. Writer]\n",
            "proofreaders_canada",
        ),
        (
            "This is a digital copy of a book that was preserved for generations on library shelves before it was\n"
            "scanned.\n\nYou can search the full text on the web\nat http : //books . google . com/\n\n" + BODY,
            "google_books",
        ),
        (
            f"水車小屋\n作者\n\n{'-' * 55}\n【テキスト中に現れる記号について】\n\n《》：ルビ\n{'-' * 55}\n\n"
            f"{BODY}\n\n底本：「全集」\n",
            "aozora",
        ),
    ],
)  # fmt: skip
def test_other_archives(wrapped: str, name: str) -> None:
    text, found = strip_boilerplate(wrapped)
    assert found == name
    assert text.strip().removeprefix("Title: The Mill\n\n") == BODY


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        "How to strip the header:\nfind the line '*** START OF THIS PROJECT GUTENBERG EBOOK' and cut there.\n"
        + BODY * 40,
        "A novel opens here.\n" * 30 + "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n" + BODY,  # no header before it
        "word " * 20_000 + "\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n" + BODY,  # far from the beginning
        "End of Project Gutenberg talks: what comes next?\n\n" + BODY * 30,
        HEADER + "*** START OF THIS PROJECT GUTENBERG EBOOK THE MILL ***\n\n",  # nothing would be left
        "",
    ],
)
def test_talk_of_marks_is_left_alone(text: str) -> None:
    assert strip_boilerplate(text) == (text, "")


@pytest.mark.parametrize(
    "file, first, last",
    [
        ("gut-alice/11-0.txt", "ALICE’S ADVENTURES IN WONDERLAND", "THE END"),
        ("gut-alice/11.txt", "ALICE'S ADVENTURES IN WONDERLAND", "THE END"),
        ("gut-pride/1342-0.txt", "PRIDE AND PREJUDICE", "had been the means of uniting them."),
    ],
)
def test_real_books(shared_data: Path, file: str, first: str, last: str) -> None:
    text, name = strip_boilerplate(decode_text((shared_data / file).read_bytes()))
    assert name == "gutenberg"
    assert text.startswith(first)
    assert text.rstrip().endswith(last)
    assert "gutenberg" not in text.lower()
