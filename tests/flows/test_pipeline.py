"""The flow's parts that need no server: dvc's order, streamed output, the reason of a failure, the artifact."""

import sys
from pathlib import Path

import pytest

from flows.pipeline import StageFailed, list_stages, render_markdown, stream_lines, task_for


def test_stages_come_in_dvc_order_with_foreach_expanded(project: Path) -> None:
    assert list_stages() == ["ingest@alpha", "ingest@beta", "train", "publish"]


def test_an_unreadable_pipeline_is_named(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: [")
    with pytest.raises(StageFailed, match=r"dvc\.yaml"):
        list_stages()


def test_lines_arrive_while_the_process_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = f"""
import pathlib, time
print('first', flush=True)
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)
print('second')
"""
    lines = stream_lines([sys.executable, "-c", program])
    assert next(lines) == "first"
    go.touch()  # the process ends only now: the first line did not wait for its end
    assert list(lines) == ["second"]


def test_a_failure_ends_with_the_last_lines_only() -> None:
    program = "import sys\nfor i in range(40): print('line', i)\nsys.exit('the disk is full')"
    with pytest.raises(StageFailed, match=r"(?s)exit status 1.*line 39\nthe disk is full$") as caught:
        list(stream_lines([sys.executable, "-c", program]))
    assert "line 20\n" not in str(caught.value)


def test_leaving_early_stops_the_process(tmp_path: Path) -> None:
    program = """
import time
try:
    print('started', flush=True)
    time.sleep(600)
except KeyboardInterrupt: open('interrupted', 'w').close()
""".replace("'interrupted'", repr(str(tmp_path / "interrupted")))
    lines = stream_lines([sys.executable, "-c", program])
    assert next(lines) == "started"
    lines.close()
    assert (tmp_path / "interrupted").exists()


def test_only_ingest_is_retried() -> None:
    retries = {stage: task_for(stage).retries for stage in ["ingest@pydocs", "clean", "pretrain", "package"]}
    assert retries == {"ingest@pydocs": 2, "clean": 0, "pretrain": 0, "package": 0}


def test_artifact_shows_metrics_and_links_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRISTMILL_REPORTS_URL", "http://127.0.0.1:9")
    (tmp_path / "reports/ingest").mkdir(parents=True)
    (tmp_path / "reports/ingest/pydocs.json").write_text('{"metrics": {"loss": {"x": 3.4}, "note": "a|b"}}')
    text = render_markdown("ingest@pydocs", unchanged=False)
    assert "| loss.x | 3.4 |" in text
    assert r"| note | a\|b |" in text
    assert "[reports/ingest/pydocs.json](http://127.0.0.1:9/ingest/pydocs.json)" in text
    assert "report.html" not in text  # no link to a page that is not there
