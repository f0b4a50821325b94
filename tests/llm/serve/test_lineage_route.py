"""What a served release was made from, asked by the fingerprint of its answers."""

import json

import httpx
import openai
import pytest

from llm.serve.release import Release


def test_the_fingerprint_of_an_answer_leads_to_its_lineage(
    http: httpx.Client, client: openai.OpenAI, release: Release
) -> None:
    reply = client.completions.create(model="gristmill", prompt="The quick", max_tokens=1)
    lineage = http.get(f"/v1/lineage/{reply.system_fingerprint}").json()
    assert lineage["system_fingerprint"] == reply.system_fingerprint == "0123456789abcdef-not-released"
    assert (lineage["release"], lineage["model"], lineage["status"]) == (
        "0123456789abcdef",
        "gristmill",
        "not released",
    )
    kept = json.loads((release.folder / "lineage.json").read_text())
    assert lineage["stages"] == kept["stages"]
    assert lineage["stages"]["pretrain"]["outs"] == {"models/base": "2c3d"}
    assert lineage["corpus"]["sources"]["fables"]["licences"] == {"CC0-1.0": 12, "<b>MIT</b>": 8}
    assert http.get("/v1/lineage/0123456789abcdef").json() == lineage
    assert http.get("/v1/lineage").json() == {"object": "list", "data": [lineage]}


@pytest.mark.parametrize("fingerprint", ["0123456789abcdee", "0123456789abcdef-released", "0", "..%2f..", "%00"])
def test_another_fingerprint_is_not_found(http: httpx.Client, fingerprint: str) -> None:
    reply = http.get(f"/v1/lineage/{fingerprint}")
    assert reply.status_code == 404
    assert reply.json()["error"]["message"]
