"""The report page: complete with everything, honest with little, harmless with anything."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.plumbing.report import render
from stages.plumbing.report_curves import judge_curve, trace_curve
from stages.plumbing.report_numbers import duration, number, size

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = '<script>alert(1)</script> & "quotes" {{ 7 * 7 }}'


def make_choice(accuracy: float, half: float = 0.04) -> dict[str, float]:
    return {"accuracy": accuracy, "low": accuracy - half, "high": accuracy + half, "n": 480}


def make_evaluation() -> dict[str, Any]:
    change = {"sft": 0.1, "policy": 0.7, "delta": 0.6, "delta_low": 0.4, "delta_high": 0.8, "n": 256}
    principles = ("beneficence", "non_maleficence", "autonomy", "justice")
    sample = {"kind": "qa", "messages": [{"role": "user", "content": NASTY}], "reference": "r"}
    return {
        "bits_per_byte": {"base": 1.4, "policy": 1.5},
        "baselines": {"xz": 2.0, "zstd": 2.1, "ngram": 1.8, "uniform": 8.0},
        "text": {"held_out_bytes": 800_000, "held_out_documents": 2000, "ngram_order": 7, "baseline_bytes_left_out": 0},
        "multiple_choice": {
            "base": make_choice(0.33),
            "sft": make_choice(0.41),
            "policy": make_choice(0.40),
            "word_overlap": make_choice(0.45),
            "blanked": make_choice(0.25, 0.0),
        },
        "reward": {**change, "second": change},
        "length": {"sft": 17.0, "policy": 18.0, "ratio": 18 / 17},
        "kl": {"value": 4.0, "bound": 8.0},
        "cost": {p: {"value": 0.3, "low": 0.1, "high": 0.5, "bound": 0.5, "n": 12, "sft": 0.4} for p in principles},
        "samples": [{**sample, "base": NASTY, "sft": "s", "policy": ""}],
    }


def make_package(passed: bool = True, bits: float = 1.4) -> dict[str, Any]:
    check = {"name": "bits_per_byte.base", "value": bits, "bound": 1.8, "passed": passed, "why": "must be below"}
    return {"release": "0123456789abcdef", "gate": {"passed": passed, "checks": [check]}}


def write_report(root: Path, name: str, metrics: dict[str, Any]) -> None:
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / f"{name}.json").write_text(json.dumps({"stage": name, "metrics": metrics}))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    write_report(tmp_path, "evaluate", make_evaluation())
    write_report(tmp_path, "package", make_package())
    row = {"bits_per_byte": 1.5, "size_bytes": 27_000_000, "bits_per_weight": 32.0, "agreement": 1.0}
    card = {name: {**row, "bits_per_byte": b} for name, b in (("q8_0", 1.501), ("q4_0", 1.53), ("q4_0_rtn", 1.56))}
    write_report(tmp_path, "quantize", {"card": {"original": row, **card}})
    write_report(tmp_path, "rlhf", {"kept_step": 3})
    counts = {"documents": 100, "questions": 0}
    clean = {
        "input": counts,
        "kept": {"documents": 60, "questions": 0},
        "splits": {"documents": {"train": 50, "val": 10}},
    }
    rejected = {"documents": {"near_duplicate": 30, "too_short": 10}}
    write_report(
        tmp_path, "clean", {**clean, "rejected": rejected, "bytes": {"train": 9}, "placeholders": {"email": 1}}
    )
    expectation = {"documents.text_not_empty": {"passed": True, "observed": 0, "bound": 0}}
    write_report(tmp_path, "validate", {"passed": 1, "failed": 0, "expectations": expectation})
    runs = tmp_path / "reports" / "runs"
    (runs / "ingest").mkdir(parents=True)
    for name in ("ingest/pydocs", "pretrain", "package"):
        run = {"seconds": 61.0, "peak_memory_bytes": 2**30, "commit": "c0ffee", "dirty": True, "device": "CPU"}
        (runs / f"{name}.json").write_text(json.dumps(run))
    points = {
        "base": [{"step": i, "loss": 9 / i, "lr": 0.1, "grad": 1.0} for i in range(1, 400)],
        "policy": [{"step": i, "reward": i, "kl": i, "length": 5, "entropy": 1.0} for i in range(1, 9)],
    }
    for name, rows in points.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    release = tmp_path / "models" / "release"
    release.mkdir()
    corpus = {"sources": {"pydocs": {"documents": {"train": 50, "val": 10}, "licences": {"MIT": 60}}}}
    stages = {"pretrain": {"outs": {"models/base": "feed.dir"}}}
    (release / "lineage.json").write_text(json.dumps({"stages": stages, "corpus": corpus}))
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
        "22 % shorter",
        "Kneser-Ney bytes, order 7",
        "chance",
        "a second judge agrees",
        "non-maleficence",
        "written answer",
        "Pretraining loss",
        "Policy: KL to sft",
        "q4_0_rtn",
        "near duplicate",
        "All 1 expectations",
        "ingest/pydocs",
        "c0ffee",
        "uncommitted",
        "MIT (60)",
    ):
        assert words in page, words


def test_is_one_closed_file_whose_tags_match(full: Path) -> None:
    page = read_page(full)
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:|//|file:)", page)
    assert "<script" not in page
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


def test_model_output_is_text_and_nothing_else(full: Path) -> None:
    page = read_page(full)
    assert html.escape(NASTY, quote=False).split("&amp;")[0] in page
    assert "{{ 7 * 7 }}" in page


def test_nothing_to_show_is_no_page(tmp_path: Path) -> None:
    assert render(tmp_path) is None
    (tmp_path / "reports").mkdir()
    assert render(tmp_path) is None


@pytest.mark.parametrize("kept", ["evaluate", "package", "clean", "quantize", "validate"])
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


def test_a_failed_gate_is_not_called_released(full: Path) -> None:
    write_report(full, "package", make_package(passed=False))
    page = read_page(full)
    assert "Not released" in page
    assert "1 of 1 checks fail" in page


def test_a_verdict_on_an_earlier_model_says_so(full: Path) -> None:
    assert "earlier model" not in read_page(full)
    write_report(full, "package", make_package(bits=1.7))
    assert "earlier model" in read_page(full)


def test_claims_follow_the_figures(full: Path) -> None:
    found = make_evaluation()
    found["bits_per_byte"]["base"] = 1.9
    found["multiple_choice"]["sft"] = make_choice(0.27)
    found["multiple_choice"]["blanked"] = make_choice(0.35)
    found["reward"]["second"] = {**found["reward"]["second"], "delta_low": -0.1}
    found["cost"]["justice"]["value"] = 0.6
    write_report(full, "evaluate", found)
    page = read_page(full)
    for words in (
        "does not yet beat ngram",
        "cannot yet tell",
        "trust no figure here",
        "second one is not convinced",
        "Over its bound: justice",
    ):
        assert words in page, words


def test_numbers_read_well() -> None:
    assert [number(v) for v in (0.12345, 1234567, 0.0, 2.0, 123.456)] == ["0.123", "1,234,567", "0", "2", "123"]
    assert [size(v) for v in (0, 999, 7_400_000, 2**40)] == ["0 B", "999 B", "7.40 MB", "1,100 GB"]
    assert [duration(v) for v in (1.25, 59.0, 61.0, 3600.0)] == ["1.2 s", "59 s", "1:01 min", "60:00 min"]


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
