"""The bill of materials of a release, in CycloneDX 1.6: the model, its data sources, and the software of the lock.

No date and no serial number: same release, same bytes. Files have their SHA-256; the lock names versions and no
hashes of packages, so theirs are not known. Digests of data are those of dvc.lock.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.config import ConfigError, InitFrom
from llm.export.verify import digest_file, list_files

SBOM = "sbom.cdx.json"
PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;#]+)")


def describe_materials(
    name: str, release: str, folder: Path, lineage: Mapping[str, Any], lock: Path, init_from: InitFrom | None
) -> dict[str, Any]:
    """Return the bill of materials of a release as JSON.

    Args: folder: the release; the model's files are `hf` and `gguf` in it.  lineage: its lineage.json.
          lock: requirements.lock.  init_from: the model that training started from, None for random weights.
    """
    data, packages = _list_data(lineage), _list_packages(lock)
    refs = [str(component["bom-ref"]) for component in (*data, *packages)]
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": name,
        "name": name,
        "version": release,
        "components": _list_model_files(folder),
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": "Qwen3ForCausalLM",
                "datasets": [{"ref": str(component["bom-ref"])} for component in data],
            }
        },
    }
    if init_from is not None:
        start = {"type": model["type"], "name": Path(init_from.path).name, "version": init_from.digest}
        model["pedigree"] = {"ancestors": [start]}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": model},
        "components": [*data, *packages],
        "dependencies": [{"ref": name, "dependsOn": refs}],
    }


def _list_model_files(folder: Path) -> list[dict[str, Any]]:
    return [
        {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest_file(folder / name)}]}
        for name in list_files(folder)
        if name.startswith(("hf/", "gguf/"))
    ]


def _list_data(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a component for each source of documents, conversations, preferences or questions."""
    corpus = lineage["corpus"]
    kinds: dict[str, list[str]] = {source: ["documents"] for source in corpus["sources"]}
    for kind in ("conversations", "preferences", "questions"):
        for source in corpus[kind]:
            kinds.setdefault(source, []).append(kind)
    found = []
    for source in sorted(kinds):
        component: dict[str, Any] = {
            "type": "data",
            "bom-ref": f"data:{source}",
            "name": source,
            "description": ", ".join(kinds[source]),
            "data": [{"type": "dataset", "name": source}],
        }
        digest = lineage["stages"].get(f"ingest@{source}", {}).get("outs", {}).get(f"data/raw/{source}")
        licences = corpus["sources"].get(source, {}).get("licences", {})
        found.append(
            component
            | ({"version": digest} if digest else {})
            | ({"licenses": [{"license": {"name": licence}} for licence in sorted(licences)]} if licences else {})
        )
    return found


def _list_packages(lock: Path) -> list[dict[str, Any]]:
    """Return a component for each line of the lock. Raises ConfigError: a line pins nothing."""
    packages = []
    for name, version in read_pins(lock):
        purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
        packages.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return packages


def read_pins(lock: Path) -> Sequence[tuple[str, str]]:
    """Return (name, version) of each package of requirements.lock, names as the package index writes them."""
    pins = []
    for number, line in enumerate(lock.read_text(encoding="utf8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pin = PINNED.match(line)
        if pin is None:
            raise ConfigError(f"{lock}:{number}: {line!r} pins no version; compile it again with `make lock`")
        pins.append((re.sub(r"[-_.]+", "-", pin[1]).lower(), pin[2]))
    return sorted(pins)
