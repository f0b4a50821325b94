"""A failed expectation stops the DAG before compute is spent; undone, the DAG is as it was."""

import json

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_failed_expectation_stops_the_dag(smoke_project):
    params, report = smoke_project.root / "params.yaml", smoke_project.root / "reports/validate.json"
    kept, before = params.read_text(), report.read_text()
    tree = yaml.safe_load(kept)
    tree["validate"] = {"max_reject_rate": {"documents": 0.0}}
    params.write_text(yaml.safe_dump(tree))
    try:
        done = smoke_project.run("dvc", "repro", check=False)
        assert done.returncode != 0
        assert "ledger.documents_reject_rate: observed 0." in done.stdout
        assert "validate.max_reject_rate.documents" in done.stdout
        assert "Traceback" not in done.stdout
        assert "Running stage 'tokenize'" not in done.stdout
        docs = smoke_project.root / "reports/validation"
        assert json.loads((docs / "summary.json").read_text())["failed"] == 1
        assert list(docs.rglob("index.html"))
    finally:
        params.write_text(kept)
    again = smoke_project.run("dvc", "repro")
    assert report.read_text() == before
    assert "Running stage 'tokenize'" not in again.stdout
