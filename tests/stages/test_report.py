"""The report page: complete with everything, honest with little, harmless with anything."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages.plumbing.report import render
from stages.plumbing.report_curves import judge_curve, trace_curve
from stages.plumbing.report_dots import Mark, Row, plot_dots
from stages.plumbing.report_numbers import Figure, duration, energy, number, read_figure, size
from tests.stages.report_metrics import (
    NASTY,
    choice,
    make_evaluation,
    make_package,
    make_task,
    write_report,
    write_run,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECTIONS = ("gate", "curves", "tasks", "alignment", "safety", "quantization", "data", "lineage", "samples")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    write_run(tmp_path)
    return tmp_path


def read_page(root: Path) -> str:
    page = render(root)
    assert page == root / "reports" / "report.html"
    return page.read_text()


def test_shows_every_part(full: Path) -> None:
    page = read_page(full)
    for words in (
        "Released",
        "0123456789abcdef",
        "bits_per_byte.base",
        "0.110 to 0.170",
        "22 % shorter",
        "Kneser-Ney bytes, order 7",
        "chance",
        "accuracy per token",
        "2 examples shown; seed 7",
        "on the 38 items that lie in the training text 0.550",
        "no item lies in the training text",
        "the second reward model and the rule agree",
        "the bounds cost 0.20 of reward",
        "multipliers at zero",
        "its multiplier",
        "Cost: non-maleficence",
        "It prefers the wrong answer on invented",
        "it is surer than it is right",
        "AUROC of the judge",
        "Harmless prompts are still answered",
        "7 % fewer than sft",
        "That is less than with sft",
        "no memorisation shows",
        "written answer",
        "Pretraining loss",
        "Lowest at step 100, 3.30; it ends 0.10 higher",
        "The weights of step 100 (dashed) are kept",
        "Seen text is likelier by 0.30 nats per token",
        "the correlation goes from +0.30 to +0.020",
        "bring it to 0.030",
        "KL to sft",
        "q4_0_rtn",
        "near duplicate",
        "All 1 expectations",
        "ingest/pydocs",
        "c0ffee",
        "uncommitted",
        "MIT (60)",
        "modelled and not measured",
        "61 kJ",
    ):
        assert words in page, words
    assert "Not in the report of evaluate" not in page


def test_sections_come_in_the_order_of_their_weight(full: Path) -> None:
    page = read_page(full)
    places = [page.index(f'<section id="{name}">') for name in SECTIONS]
    assert places == sorted(places)
    assert page.index('class="verdict') < places[0]


def test_every_plot_says_what_to_conclude(full: Path) -> None:
    for figure in re.findall(r"<figure.*?</figure>", read_page(full), flags=re.S):
        caption = re.search(r"<figcaption.*?</figcaption>", figure, flags=re.S)
        assert caption
        assert len(re.sub(r"<.*?>", "", caption[0]).split()) > 4, caption[0]


def test_is_one_closed_file_whose_tags_match(full: Path) -> None:
    page = read_page(full)
    assert not re.search(r"<[^>]*(src|href|action|data)\s*=|url\(|@import", page)
    assert not re.search(r"<(script|link|iframe|object|embed|img|base|form)\b|<[^>]*\son\w+\s*=", page)
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", re.sub(r"<style>.*?</style>", "", page, flags=re.S))
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "rect", "line", "circle", "polyline", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

    Checker().feed(page)
    assert open_tags == []


def write_hostile(root: Path) -> None:
    """Markup, and words that do not break, wherever models and data have a say."""
    found = make_evaluation()
    found["tasks"][NASTY] = found["tasks"].pop("minimal_pairs")
    found["tasks"][NASTY]["policy"] = {NASTY: {"value": 0.5}}
    found["energy"]["assumptions"][NASTY] = NASTY
    found["samples"][0]["kind"] = NASTY
    found["tasks"]["t" * 90] = make_task({"m" * 90: 0.5})
    write_report(root, "evaluate", found)
    package = make_package(passed=False)
    package["gate"]["checks"][-1] |= {"name": NASTY, "why": NASTY, "remedy": NASTY}
    package["gate"]["checks"][0]["name"] = "served.cost." + "n" * 90
    write_report(root, "package", package)


def test_foreign_text_is_text_and_nothing_else(full: Path) -> None:
    write_hostile(full)
    page = read_page(full)
    assert page.count(html.escape("<script>alert(1)</script>")) >= 9
    assert "{{ 7 * 7 }}" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page, "a change of direction would turn the page's own words round"


def test_nothing_to_show_is_no_page(tmp_path: Path) -> None:
    assert render(tmp_path) is None
    (tmp_path / "reports").mkdir()
    assert render(tmp_path) is None


@pytest.mark.parametrize("kept", ["evaluate", "package", "clean", "quantize", "validate", "reward", "rlhf"])
def test_any_single_report_makes_a_page(full: Path, kept: str) -> None:
    for path in (full / "reports").glob("*.json"):
        if path.stem != kept:
            path.unlink()
    shutil.rmtree(full / "reports" / "runs")
    shutil.rmtree(full / "models")
    page = read_page(full)
    assert "No report yet from" in page
    assert ("Not packaged yet" in page) == (kept != "package")


def test_bits_per_byte_alone_makes_a_page(tmp_path: Path) -> None:
    found = make_evaluation()
    write_report(tmp_path, "evaluate", {name: found[name] for name in ("bits_per_byte", "baselines")})
    assert "shorter than the best baseline" in read_page(tmp_path)


@pytest.mark.parametrize("absent", sorted(make_evaluation()))
def test_any_missing_figure_is_left_out_or_named(full: Path, absent: str) -> None:
    found = make_evaluation()
    del found[absent]
    write_report(full, "evaluate", found)
    page = read_page(full)
    for part in ("gate", "curves", "data", "lineage"):
        assert f'id="{part}"' in page


def test_traces_alone_make_a_page(full: Path) -> None:
    for path in (full / "reports").glob("*.json"):
        if path.stem != "rlhf":
            path.unlink()
    shutil.rmtree(full / "models" / "control")
    page = read_page(full)
    assert "under its bound of 8" in page, "rlhf's own report names the bound of KL"
    assert "There is no arm with multipliers at zero to compare with" in page
    assert "has not been measured yet" in page


def test_a_failed_gate_says_by_how_much_and_what_next(full: Path) -> None:
    write_report(full, "package", make_package(passed=False))
    page = read_page(full)
    for words in (
        "Not released",
        "2 of 4 checks fail",
        "misses by 0.070",
        "<b>Next:</b> raise rlhf.multiplier_max",
        "not measured",
        "0.240 to 0.300",
    ):
        assert words in page, words
    assert page.count("misses by") == 1, "neither what holds nor what was not measured misses"
    assert page.index("cost.autonomy") < page.index("bits_per_byte.base"), "what fails comes first"


def test_a_miss_of_another_bound_is_left_to_words(full: Path) -> None:
    package = make_package(passed=False)
    package["gate"]["checks"][-2] |= {"by": -0.04, "why": "not measurable: AUROC is 0.78, its lower end 0.76"}
    write_report(full, "package", package)
    page = read_page(full)
    assert "misses by" not in page
    assert "its lower end 0.76" in page


def test_a_verdict_on_an_earlier_model_says_so(full: Path) -> None:
    assert "earlier model" not in read_page(full)
    write_report(full, "package", make_package(bits=1.7))
    assert "earlier model" in read_page(full)


def test_claims_follow_the_figures(full: Path) -> None:
    found = make_evaluation()
    found["bits_per_byte"]["base"] = 1.9
    found["multiple_choice"]["sft"] = choice(0.27)
    found["multiple_choice"]["blanked"] = choice(0.35)
    write_report(full, "evaluate", found)
    page = read_page(full)
    for words in ("does not yet beat ngram", "cannot yet tell", "trust no figure here"):
        assert words in page, words


def test_numbers_read_well() -> None:
    assert [number(v) for v in (0.12345, 1234567, 0.0, 2.0, 123.456)] == ["0.123", "1,234,567", "0", "2", "123"]
    assert [number(v, 2) for v in (0.0099999999, 9.996, 1e-9)] == ["0.010", "10", "0.000000"]
    assert [size(v) for v in (0, 999, 7_400_000, 2**40)] == ["0 B", "999 B", "7.40 MB", "1,100 GB"]
    assert [duration(v) for v in (1.25, 59.0, 61.0, 3600.0)] == ["1.2 s", "59 s", "1:01 min", "60:00 min"]
    assert [energy(v) for v in (0.5, 1500.0, 7.2e6)] == ["0.500 J", "1.50 kJ", "2 kWh"]


def test_only_finite_numbers_are_figures() -> None:
    assert read_figure({"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}) == Figure(0.5, 0.4, 0.6, 9)
    assert read_figure(0.5) == Figure(0.5, 0.5, 0.5, None)
    for found in (None, {}, {"value": None}, {"value": float("nan")}, {"value": True}, "0.5"):
        assert read_figure(found) is None


def test_dots_lie_where_their_values_say_and_labels_do_not_collide() -> None:
    plot = plot_dots([Row("a", Figure(0.5, 0.25, 0.75, 9))], Mark(0.1, "bound"), (0.0, 1.0))
    assert [plot["rows"][0][key] for key in ("low", "value", "high")] == [25, 50, 75]
    assert plot["mark"] == 10
    assert [tick["text"] for tick in plot["ticks"]] == ["bound", "1"], "0 would lie under the mark's label"
    outside = plot_dots([Row("a", Figure(3.0, -1.0, 4.0, 9))], None, (0.0, 1.0))["rows"][0]
    assert (outside["low"], outside["high"]) == (0, 100)


def test_curves_fit_their_box_and_say_whether_they_settled() -> None:
    falling = [(float(i), 100.0 - i) for i in range(100)]
    level = [(float(i), 5.0 + (i < 10)) for i in range(100)]
    assert "falling" in judge_curve(falling)
    assert "Level" in judge_curve(level)
    assert "too few" in judge_curve(falling[:5])
    curve = trace_curve(falling, kept=50.0)
    places = [tuple(map(float, pair.split(","))) for pair in curve["raw"].split()]
    assert places[0][0] == 0
    assert places[-1] == (100.0, 100.0)
    assert all(0 <= v <= 100 for place in places for v in place)
    assert curve["kept"] == pytest.approx(50.5, abs=0.1)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_in_a_browser(full: Path, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    write_hostile(full)
    frame = tmp_path / "frame.html"
    page = html.escape(read_page(full))
    frame.write_text(
        f"<iframe id=f style='border:0;width:{width}px;height:900px' srcdoc=\"{page}\"></iframe>"
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
