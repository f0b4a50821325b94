"""The bill of materials: valid by CycloneDX's own schema, complete, and the same on every run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from llm.config import ConfigError, InitFrom
from llm.export.sbom import describe_materials, read_pins

LOCK = Path(__file__).resolve().parents[3] / "requirements.lock"
LINEAGE: dict[str, Any] = {
    "stages": {"ingest@pydocs": {"deps": {}, "outs": {"data/raw/pydocs": "3e83.dir"}, "params": {}}},
    "corpus": {
        "sources": {"pydocs": {"documents": {"train": 9}, "licences": {"MIT": 5, "3-Clause BSD License": 4}}},
        "conversations": {"chat": 3, "pydocs": 1},
        "preferences": {"chat": 2},
        "questions": {},
    },
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for name in ("hf/model.safetensors", "gguf/model-q8_0.gguf", "items.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def describe(release: Path, init_from: InitFrom | None = None) -> dict[str, Any]:
    return describe_materials("gristmill", "0123456789abcdef", release, LINEAGE, LOCK, init_from)


def find_fault(materials: dict[str, Any]) -> object:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(materials))


def test_the_schema_accepts_it_and_is_able_to_refuse(release: Path):
    materials = describe(release, InitFrom(path="/home/ann/Qwen3-0.6B", digest="0" * 32))
    assert find_fault(materials) is None
    assert "/home" not in json.dumps(materials)
    materials["components"][0]["type"] = "corpus"
    assert find_fault(materials) is not None


def test_model_data_and_software_are_named(release: Path):
    materials = describe(release)
    model = materials["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == (
        "machine-learning-model",
        "gristmill",
        "0123456789abcdef",
    )
    digest = hashlib.sha256(b"gguf/model-q8_0.gguf").hexdigest()
    assert [file["name"] for file in model["components"]] == ["gguf/model-q8_0.gguf", "hf/model.safetensors"]
    assert model["components"][0]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data:chat"}, {"ref": "data:pydocs"}]
    parts = {part["bom-ref"]: part for part in materials["components"]}
    assert parts["data:chat"]["description"] == "conversations, preferences"
    assert parts["data:pydocs"]["version"] == "3e83.dir"
    assert [one["license"]["name"] for one in parts["data:pydocs"]["licenses"]] == ["3-Clause BSD License", "MIT"]
    assert set(materials["dependencies"][0]["dependsOn"]) == set(parts)


def test_every_line_of_the_lock_is_a_package_of_the_index(release: Path):
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    packages = [part for part in describe(release)["components"] if part["type"] == "library"]
    assert len(packages) == len(lines) > 200
    for package in packages:
        purl = PackageURL.from_string(package["purl"])
        assert (purl.type, purl.name, purl.version) == ("pypi", package["name"], package["version"])
        assert purl.to_string() == package["purl"]


def test_it_is_the_same_twice_and_holds_no_date(release: Path):
    assert json.dumps(describe(release)) == json.dumps(describe(release))
    assert "serialNumber" not in describe(release)
    assert "timestamp" not in describe(release)["metadata"]


def test_a_line_that_pins_nothing_is_named(tmp_path: Path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# a comment\n\nTorch_Scatter==2.1+cpu ; python_version > '3'\nnumpy>=2\n")
    with pytest.raises(ConfigError, match=r"requirements.lock:4: 'numpy>=2' pins no version"):
        read_pins(lock)
    lock.write_text("# a comment\n\nTorch_Scatter==2.1+cpu ; python_version > '3'\n")
    assert read_pins(lock) == [("torch-scatter", "2.1+cpu")]
