"""The code that each stage's result depends on: the import closure of stages/<name>.py, as single files.

    python -m stages.plumbing.deps            says where dvc.yaml differs, and exits with 1
    python -m stages.plumbing.deps --write    rewrites the .py deps of dvc.yaml

Plumbing is left out: it cannot change a result, so it must not repeat one.
"""

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

NOT_RESULTS = ("stages/plumbing/", "llm/progress.py")
DAG = Path("dvc.yaml")


def import_closure(module: str, root: Path = Path(".")) -> list[str]:
    """Return the project's files that importing `module` (e.g. "stages.clean") can execute, itself included.

    Imports inside functions count: they run too. So does every module of a package that lists its own, with
    `pkgutil.iter_modules(__path__)`.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        file = find_file(waiting.pop(), root)
        if file is None or file in found or file.startswith(NOT_RESULTS):
            continue
        found.add(file)
        tree = ast.parse((root / file).read_text(encoding="utf8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting.append(node.module)
                waiting += [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node) == "pkgutil.iter_modules(__path__)":
                siblings = sorted((root / file).parent.glob("*.py"))
                waiting += [".".join((*Path(file).parent.parts, one.stem)) for one in siblings]
    return sorted(found)


def find_file(module: str, root: Path) -> str | None:
    """Return the file of one of our modules, or None."""
    if module.split(".")[0] not in ("llm", "stages"):
        return None
    base = Path(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path.as_posix() for path in candidates if (root / path).is_file()), None)


def expected_deps(name: str, entry: dict[str, Any], root: Path = Path(".")) -> list[str]:
    """Return a stage's deps: what is not code as it stands, then its import closure."""
    data = [dep for dep in entry.get("deps", []) if not str(dep).endswith(".py")]
    return data + [file for file in import_closure(f"stages.{name}", root) if not is_docstring_only(root / file)]


def is_docstring_only(path: Path) -> bool:
    """Say whether a file holds nothing but a docstring."""
    body = ast.parse(path.read_text(encoding="utf8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite dvc.yaml")
    arguments = parser.parse_args()
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    dag = yaml.load(DAG)
    differing = []
    for name, stage in dag["stages"].items():
        entry = stage.get("do", stage)
        wanted = expected_deps(name, entry)
        if list(entry["deps"]) != wanted:
            differing.append(name)
            entry["deps"] = wanted
    if differing and arguments.write:
        yaml.dump(dag, DAG)
    if differing:
        print(f"dvc.yaml: deps of {', '.join(differing)} {'rewritten' if arguments.write else 'differ: make deps'}")
    sys.exit(1 if differing and not arguments.write else 0)


if __name__ == "__main__":
    main()
