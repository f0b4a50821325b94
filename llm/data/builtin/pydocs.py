"""The embedded corpus: docstrings of the standard library and of the packages that the lock file names.

Files come from each distribution's RECORD and from the standard library's own list of module names, sorted:
never a walk over site-packages. Packages whose files differ by platform are left out, as are tests and
vendored copies. Modules are sampled whole, by hash, before they are parsed.
"""

import csv
import importlib.metadata
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageMetadata
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement

from llm.config import ConfigError
from llm.data.builtin.docstrings import MAX_SOURCE_BYTES, Entry, extract_entries
from llm.data.schema import Document, hash_id, hash_share, to_json
from llm.progress import track

PLATFORM_PACKAGES = re.compile(r"^(torch|torch[-_].*|torchvision|nvidia[-_].*|cuda[-_].*|triton.*)$")
SKIPPED_PATHS = re.compile(
    r"(^|/)(tests?|testing|_?vendor(ed)?|_?third_?party|site-packages|dist-packages|__pycache__"
    r"|conftest\.py|test_[^/]*|[^/]*_test\.py|_?version\.py|__config__\.py)(/|$)"
)
# Left out by some distributors of Python, or different on each machine.
SKIPPED_STDLIB = {
    "antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this",
    "tkinter", "turtle", "turtledemo", "venv",
}  # fmt: skip
CHUNK_MODULES = 64


@dataclass(frozen=True, slots=True)
class Module:
    """One source file; `path` is where it lies here and enters no output."""

    package: str
    name: str
    license: str
    url: str
    version: str
    path: Path


@dataclass(frozen=True, slots=True)
class DocumentedModule:
    """A module and its docstrings."""

    package: str
    name: str
    license: str
    url: str
    version: str
    entries: tuple[Entry, ...]


def read_pydocs(lock: Path, sample: float, processes: int = 1) -> list[DocumentedModule]:
    """Return the documented modules of the sample, ordered by package and name.

    The result does not depend on `processes`.
    """
    modules = [
        module
        for module in [*list_stdlib(), *list_locked(lock)]
        if hash_share("module", module.package, module.name) < sample
    ]
    modules.sort(key=lambda module: (module.package, module.name))
    chunks = [modules[i : i + CHUNK_MODULES] for i in range(0, len(modules), CHUNK_MODULES)]
    if processes == 1:
        parsed = [_parse_chunk(chunk) for chunk in track(chunks, "reading docstrings")]
    else:
        # fork: the children only parse, and need not import the caller's modules again.
        with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
            parsed = list(track(pool.map(_parse_chunk, chunks), "reading docstrings", total=len(chunks)))
    return [module for chunk in parsed for module in chunk if module.entries]


def _parse_chunk(modules: list[Module]) -> list[DocumentedModule]:
    return [
        DocumentedModule(m.package, m.name, m.license, m.url, m.version, tuple(_read_entries(m.path))) for m in modules
    ]


def _read_entries(path: Path) -> list[Entry]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return extract_entries(content.decode("utf-8", "replace")) if len(content) <= MAX_SOURCE_BYTES else []


def list_stdlib() -> Iterator[Module]:
    """Yield the standard library's modules; each top-level module is a package of its own: `python/json`."""
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names - SKIPPED_STDLIB):
        folder = root / top
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        for file in files:
            relative = PurePosixPath(file.relative_to(root).as_posix())
            name = _module_name(relative)
            if name and file.is_file() and not top.startswith("_sysconfigdata"):
                url = f"https://docs.python.org/3/library/{top}.html"
                yield Module(f"python/{top}", name, "PSF-2.0", url, platform.python_version(), file)


def list_locked(lock: Path) -> Iterator[Module]:
    """Yield the modules of the lock's packages; a file that several distributions claim goes to the first."""
    seen: set[str] = set()
    for name in sorted(_locked_names(lock)):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                f"{lock.name} names {name}, which is not installed; install the lock again: make install"
            ) from None
        about = distribution.metadata  # parsed anew by each access
        license_name, url, version = _read_license(about), _read_url(about), str(about["Version"])
        root = Path(str(distribution.locate_file("")))
        for file in sorted(_recorded_files(distribution) - seen):
            seen.add(file)
            if module := _module_name(PurePosixPath(file)):
                yield Module(name, module, license_name, url, version, root / file)


def _recorded_files(distribution: importlib.metadata.Distribution) -> set[str]:
    """Return the Python files of a distribution; `Distribution.files` would look each of them up on disk."""
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    return {row[0] for row in rows if row and row[0].endswith(".py")}


def _locked_names(lock: Path) -> Iterator[str]:
    for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split(" #")[0].split("--hash")[0].strip().rstrip("\\").strip()
        if not text or text.startswith(("#", "-")):
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise ConfigError(f"{lock.name}:{number}: not a requirement: {error}") from error
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if not PLATFORM_PACKAGES.match(name) and (wanted.marker is None or wanted.marker.evaluate()):
            yield name


def _module_name(relative: PurePosixPath) -> str:
    """Return a file's dotted name, or "" for what is no module, a test or a vendored copy."""
    parts = relative.with_suffix("").parts
    parts = parts[:-1] if parts and parts[-1] == "__init__" else parts
    usable = parts and all(part.isidentifier() for part in parts) and not SKIPPED_PATHS.search(str(relative))
    return ".".join(parts) if usable else ""


def _read_license(about: PackageMetadata) -> str:
    given = [*_values(about, "License-Expression"), *_values(about, "License"), ""]
    first = given[0].strip().split("\n")[0].strip()
    if 0 < len(first) <= 60:
        return first
    classifiers = _values(about, "Classifier")
    names = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License :: ")]
    return " AND ".join(sorted(names)) or "unknown"


def _read_url(about: PackageMetadata) -> str:
    urls = sorted(one.partition(", ")[2] for one in _values(about, "Project-URL"))
    return [*_values(about, "Home-page"), *urls, ""][0]


def _values(about: PackageMetadata, field: str) -> list[str]:
    return [str(value) for value in about.get_all(field) or []]


def build_documents(modules: list[DocumentedModule], source: str) -> list[Document]:
    """Return one document per docstring, headed by the dotted name and the parameters."""
    documents = []
    for module in modules:
        for entry in module.entries:
            text = f"{head_entry(module.name, entry)}\n\n{entry.text}"
            meta = {"kind": entry.kind, "module": module.name, "name": entry.name, "version": module.version}
            documents.append(
                Document(
                    hash_id(source, text),
                    text,
                    source,
                    module.license,
                    module.url,
                    to_json(meta),
                    module.package,
                )
            )
    return documents


def head_entry(module: str, entry: Entry) -> str:
    """Return the first line of a docstring's document: `json.dumps(obj, skipkeys)`, `class json.JSONEncoder`."""
    if entry.kind == "module":
        return f"module {module}"
    if entry.kind == "class":
        return f"class {module}.{entry.name}"
    return f"{module}.{entry.name}({', '.join(entry.parameters)})"
