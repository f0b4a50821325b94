"""Datasets of the Hub and of folders: names, splits, caps, and quick words when there are none."""

import json
import time
from pathlib import Path

import datasets
import pytest

from llm.config import ConfigError
from llm.data.rows.formats import SourceFormat
from llm.data.sources.hosted import is_hosted, read_hosted


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.chdir(tmp_path)


def write_rows(path: Path, count: int, word: str = "Row") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": f"{word} number {i}."}) + "\n" for i in range(count)))


def read(locator: str, **fmt: object) -> list[str]:
    return [row["text"] for _, row in read_hosted(locator, SourceFormat(**fmt))]


def test_a_folder_streams_and_is_capped(tmp_path: Path) -> None:
    write_rows(tmp_path / "set/train.jsonl", 100)
    write_rows(tmp_path / "set/test.jsonl", 3, "Test")
    assert read("hf:set", max_bytes=60) == [f"Row number {i}." for i in range(5)]
    assert read(f"hf:{tmp_path}/set", max_records=3) == [f"Row number {i}." for i in range(3)]
    assert read("hf:set", split="test") == [f"Test number {i}." for i in range(3)]
    assert [number for number, _ in read_hosted("hf:set", SourceFormat(max_records=2))] == [1, 2]


@pytest.mark.parametrize("whole", [False, True])
def test_a_saved_dataset_is_read_from_its_folder(tmp_path: Path, whole: bool) -> None:
    train = datasets.Dataset.from_dict({"text": ["One.", "Two."]})
    saved = datasets.DatasetDict({"train": train, "test": train.select([1])}) if whole else train
    saved.save_to_disk(tmp_path / "saved")
    assert is_hosted(str(tmp_path / "saved"))
    assert read("saved") == ["One.", "Two."]
    if whole:
        assert read("hf:saved", split="test") == ["Two."]
        with pytest.raises(ConfigError, match="no split 'validation'; there are train, test"):
            read("saved", split="validation")


def test_a_split_or_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "set/train.jsonl", 2)
    with pytest.raises(ConfigError, match="hf:set: cannot be read as a dataset .*validation"):
        read("hf:set", split="validation")
    with pytest.raises(ConfigError, match="hf:set: cannot be read as a dataset .*german"):
        read("hf:set", config="german")


def test_a_dataset_out_of_reach_is_said_so_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError, match="owner/name: no file or folder here .* cannot be asked .*HF_HUB_OFFLINE=1"):
        read("owner/name@config")
    assert time.monotonic() - start < 10  # it was 24 s: the library tries six times


@pytest.mark.parametrize(
    "locator, hosted",
    [("owner/name", True), ("owner/name@config", True), ("hf:x", True), ("./texts", False), ("a/b/c", False)],
)
def test_what_is_a_datasets_name(locator: str, hosted: bool) -> None:
    assert is_hosted(locator) is hosted


def test_a_mistyped_path_is_not_looked_up_on_the_network(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    assert not is_hosted("texts/bok")
    assert not is_hosted("owner/book.txt")
    assert not is_hosted("owner/books.tar.gz")
