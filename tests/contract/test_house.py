"""The house rules: one name everywhere, who may import whom, dvc deps are import closures, README commands exist."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.plumbing.deps import expected_deps, import_closure
from stages.plumbing.recipe import check_params
from stages.plumbing.stage import list_sources, parse_params

ROOT = Path(__file__).parents[2]
STAGES = ["ingest", "clean", "validate", "tokenize", "pretrain", "sft", "reward", "rlhf", "evaluate"]
STAGES += ["quantize", "package"]
DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text())
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

# Each row may import itself, llm.model, the top of llm (config, progress), and what it names.
ALLOWED = {
    "llm.serve": {"llm.infer", "llm.memory", "llm.export", "llm.data"},
    "llm.rl": {"llm.train", "llm.infer", "llm.data"},
    "llm.evals": {"llm.infer", "llm.rl", "llm.data"},
    "llm.export": {"llm.data", "llm.infer"},
    "llm.quant": {"llm.data", "llm.infer"},
    "llm.memory": {"llm.infer", "llm.data"},
    "llm.variants": {"llm.data"},
    "llm.train": {"llm.data"},
    "llm.infer": set(),
    "llm.data": set(),
    "llm.model": set(),
    "stages": {"llm"},
    "flows": set(),
}
# Heavy packages, and the only files that may import them.
HOMES = {
    "ray": {"llm/train/ray_launcher.py", "llm/rl/ray_rollout.py"},
    "deepspeed": {"llm/train/deepspeed_engine.py"},
    "mlflow": {"stages/plumbing/tracking.py"},
    "great_expectations": {"llm/data/checks/expectations.py"},
    "prefect": {"flows/"},
    "bentoml": {"llm/serve/"},
    "openvino_genai": {"llm/export/openvino.py", "llm/serve/"},
}


def source_files() -> list[Path]:
    folders = [ROOT / name for name in ("llm", "stages", "flows", "benchmarks")]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return [file for file in files if ".venv" not in file.parts]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def folder_of(module: str) -> str:
    parts = module.split(".")
    return (
        ".".join(parts[:2])
        if parts[0] == "llm" and (ROOT / "llm" / parts[1 if len(parts) > 1 else 0]).is_dir()
        else parts[0]
    )


def test_one_name_everywhere():
    assert list(DAG["stages"]) == STAGES
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    for name, stage in DAG["stages"].items():
        entry = stage.get("do", stage)
        assert entry["cmd"].split()[:3] == ["python", "-m", f"stages.{name}"]
        assert "base" in entry["params"]
        assert any(param == name or param.startswith(f"{name}.") for param in entry["params"])
        report = "reports/ingest/${key}.json" if name == "ingest" else f"reports/{name}.json"
        assert [list(metric) for metric in entry["metrics"]] == [[report]]
    for name in STAGES:
        params = importlib.import_module(f"stages.{name}").Params
        assert params.__module__ == f"stages.{name}"


@pytest.mark.parametrize("name", STAGES)
def test_dvc_deps_are_the_import_closure(name):
    entry = DAG["stages"][name].get("do", DAG["stages"][name])
    assert entry["deps"] == expected_deps(name, entry, ROOT), "run `make deps`"


def test_import_closure_holds_the_modules_that_a_package_lists():
    readers = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llm/data/sources/readers").glob("*.py")}
    assert len(readers) > 5
    assert readers <= set(import_closure("stages.ingest", ROOT))


def test_import_closure_follows_functions_and_skips_plumbing():
    closure = import_closure("stages.pretrain", ROOT)
    assert "llm/train/ray_launcher.py" in closure  # imported inside run()
    assert "stages/pretrain.py" in closure
    assert not any(path.startswith("stages/plumbing") for path in closure)


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_follow_the_table(path):
    me = folder_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    imported = imports_of(path)
    for module in sorted(m for m in imported if m.split(".")[0] in ("llm", "stages", "flows")):
        target = folder_of(module)
        if target in (me, "llm.model") or me in ("benchmarks",):
            continue
        if target == "llm" and me != "flows":  # llm.config, llm.progress
            continue
        allowed = ALLOWED.get(me, set())
        assert target in allowed or target.split(".")[0] in allowed, f"{me} may not import {module}"
    file = path.relative_to(ROOT).as_posix()
    for package, homes in HOMES.items():
        uses = any(module.split(".")[0] == package for module in imported)
        assert not uses or file.startswith((*homes, "benchmarks/")), f"{file} imports {package}"


def test_importing_has_no_effect(tmp_path):
    """Every module imports in an empty folder, writes nothing there, and sets up no logging."""
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in source_files()]
    modules = [m.removesuffix(".__init__") for m in modules if not m.startswith("benchmarks") and "__main__" not in m]
    program = (
        "import importlib, json, logging, sys\n"
        f"[importlib.import_module(m) for m in {modules!r}]\n"
        "print(json.dumps([sorted(m for m in ('ray', 'deepspeed', 'great_expectations') if m in sys.modules)]))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    environment |= {
        "PREFECT_HOME": str(tmp_path / "home" / "prefect"),
        "BENTOML_HOME": str(tmp_path / "home" / "bento"),
    }
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "empty").iterdir()) == []
    assert json.loads(done.stdout.splitlines()[-1]) == [[]]


@pytest.mark.parametrize("recipe", [ROOT / "params.yaml", *RECIPES], ids=lambda p: p.name)
def test_every_recipe_parses(recipe):
    tree = yaml.safe_load(recipe.read_text())
    assert set(tree) == {"base", *STAGES}
    assert list_sources(tree, DAG)
    for name in STAGES:
        parse_params(name, importlib.import_module(f"stages.{name}").Params, tree)


def test_params_are_a_recipe(monkeypatch):
    assert (ROOT / "params.yaml").read_bytes() in [recipe.read_bytes() for recipe in RECIPES]
    monkeypatch.chdir(ROOT)
    check_params()


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", readme))
    assert named <= targets
    assert {"run", "test", "serve", "chat", "demo", "flow", "mlflow", "report", "check", "bench"} <= named
    for module in re.findall(r"python -m ([\w.]+)", readme):
        assert importlib.util.find_spec(module) is not None, module


def test_ci_calls_the_readme_test_command():
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_every_pin_is_exact():
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.\[\],-]+==[\w.!]+", line) for line in lines)
