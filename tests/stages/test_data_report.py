"""The page on the data: it shows what a real small run took in and dropped, and is harmless with hostile text."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm.data.rows.formats import SourceFormat
from stages.plumbing.data_report import report_project, report_source

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \u202egnp.exe"
PROSE = (
    "The miller of the lower valley keeps his wheel in good repair, for the winter floods are strong and the "
    "farmers bring their grain before the first snow. Number {} of his books says how much he ground in that year, "
    "who paid in coin, and who paid with a share of the flour that was left after the sieve."
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prose, a twin of some of it, hostile text, personal data, short text, and lines that are no JSON."""
    folder = tmp_path_factory.mktemp("source")
    rows = [f"{PROSE.format(i)} {' '.join(chr(97 + (i * k) % 26) * 4 for k in range(1, 30))}" for i in range(30)]
    rows += [rows[3], rows[4].upper(), rows[5].replace("farmers", "bakers"), "Short."]
    rows += [f"{NASTY} {rows[7]}", f"Write to miller@example.org. {rows[8][::-1]}"]
    lines = [json.dumps({"text": row}) for row in rows]
    (folder / "mill.jsonl").write_text("\n".join([*lines, "{broken", '{"text": "<b>also broken"']) + "\n")
    (folder / "twin.txt").write_text(rows[9])
    return folder


@pytest.fixture(scope="module")
def page(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_source(str(source), SourceFormat(), ROOT, tmp_path_factory.mktemp("scratch"))


def read_text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.S)))


def test_shows_what_went_in_and_what_was_dropped(page: str, source: Path) -> None:
    text = re.sub(r"\s+", " ", read_text(page))
    for words in (
        str(source),
        "39 2 of them unreadable",  # 36 rows and the twin are kept, two lines are broken
        "37 documents",
        "mill.jsonl",
        "too short",
        "exact duplicate",
        "The largest clusters",
        "similarity 1",
        "email 1",
        "10 random records that are kept",
        "random records that are rejected",
        "Languages of what is kept",
        "not looked for and is still there",
    ):
        assert words in text, words
    kept = re.findall(r"documents · \S+ · [0-9a-f]{12}\b", text)
    assert len(kept) == 10
    assert not re.search(r"\b(nan|None|Undefined)\b", text)


def test_is_the_same_each_time(page: str, source: Path, tmp_path: Path) -> None:
    assert report_source(str(source), SourceFormat(), ROOT, tmp_path) == page


def test_text_of_the_data_is_text_and_nothing_else(page: str) -> None:
    assert "<script" not in page
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", page)
    assert "\u202e" not in page
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:|//|file:)", page)
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "img", "iframe", "object")
            if tag not in ("meta", "rect", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

    Checker().feed(page)
    assert open_tags == []


def test_a_source_that_clean_refuses_is_shown_as_read(tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("Short.")
    (tmp_path / "scratch").mkdir()
    page = report_source(str(tmp_path / "tiny.txt"), SourceFormat(), ROOT, tmp_path / "scratch")
    assert "clean stopped: data/raw: no document passed" in read_text(page)
    assert "What went in" in page
    assert "The largest clusters" not in page


def test_the_project_is_reported_from_what_lies_there(source: Path, tmp_path: Path) -> None:
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("smalltalk", "principles"):
        shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name)
    (tmp_path / "params.yaml").write_text(
        f"ingest: {{sources: {{mill: {{path: '{source}', watch: '{source}'}}, chat: {{path: chat, watch: .}}}}}}\n"
    )
    scratch = tmp_path / "made"
    scratch.mkdir()
    report_source(str(source), SourceFormat(), tmp_path, scratch)
    shutil.copytree(next((scratch / "raw").iterdir()), tmp_path / "data/raw/mill")
    with pytest.raises(ValueError, match="chat not ingested yet"):
        report_project(tmp_path)
    shutil.copytree(tmp_path / "data/raw/mill", tmp_path / "data/raw/chat")
    before = read_text(report_project(tmp_path))
    assert "clean has not run yet" in before
    for name in ("clean", "rejects"):
        shutil.copytree(scratch / name, tmp_path / "data" / name)
    assert "The largest clusters" in report_project(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_in_a_browser(page: str, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe id=f style='border:0;width:{width}px;height:900px' srcdoc=\"{html.escape(page)}\"></iframe>"
        "<script>const f = document.getElementById('f');"
        "f.onload = () => { document.title = f.contentDocument.documentElement.scrollWidth; }</script>"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"<title>(\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= width
