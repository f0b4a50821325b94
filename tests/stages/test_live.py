"""Learning curves while they grow: event files that TensorBoard reads, and faults that cost nothing."""

import sys
import types

import pytest

from stages.plumbing import live


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "FOLDER", tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def read_scalars(folder):
    """Read event files back by their own format: length-prefixed protobuf records."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found[value.tag, event.step] = round(value.simple_value, 5)
            at += 12 + length + 4
    return found


def test_points_are_in_the_event_files(tmp_path):
    curve = live.Live("reward", "key", "first")
    curve({"step": 5, "loss": 0.5, "accuracy": 0.75})
    curve({"step": 10, "loss": 0.25, "accuracy": 1.0})
    for view in curve.views:
        view.__closure__[0].cell_contents.close()
    expected = {("loss", 5): 0.5, ("accuracy", 5): 0.75, ("loss", 10): 0.25, ("accuracy", 10): 1.0}
    assert read_scalars(tmp_path / "reward" / "key" / "first") == expected


def test_weights_and_biases_gets_the_points_when_its_key_is_set(monkeypatch):
    """wandb itself is not installed: a module in its place notes what it is told."""
    told = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: told.append(given) or run))
    monkeypatch.setenv("WANDB_API_KEY", "x")
    live.Live("sft", "key", "")({"step": 1, "loss": 2.0})
    assert told[0]["id"] == "sft-key"
    assert told[0]["resume"] == "allow"
    assert told[1] == (1, {"loss": 2.0})


def test_a_view_that_fails_is_one_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    curve = live.Live("sft", "key", "")
    curve({"step": 1, "loss": 2.0})
    curve({"step": 2, "loss": 2.0})
    assert caplog.text.count("pip install wandb") == 1
