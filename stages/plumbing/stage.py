"""Run one stage: read its section of params.yaml and its paths of dvc.yaml, time it, write its two reports.

`reports/<stage>.json` holds what is the same on every run; `reports/runs/<stage>.json` what this run cost.
Outputs appear under their final names only when the stage has succeeded.
"""

import errno
import hashlib
import json
import logging
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import ValidationError

from llm.config import ConfigError, StageParams, require

log = logging.getLogger("gristmill")
P = TypeVar("P", bound=StageParams)
SCRATCH = Path(".scratch")
KEEP_RUNS = 3  # of a stage, in .scratch: one can go back to params of a moment ago


@dataclass
class Paths:
    """Where a stage reads and writes; keys are the paths of dvc.yaml.

    `outs` are temporary names: create them; they are renamed when the stage has succeeded.
    """

    stage: str
    deps: dict[str, Path]
    outs: dict[str, Path]
    item: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    evaluation_sources: tuple[str, ...] = ()  # never trained on
    params_json: str = "{}"
    cost: dict[str, float | str] = field(default_factory=dict)
    live: bool = False  # learning curves are shown while they grow

    def follow(self, part: str = "") -> Callable[[Mapping[str, float]], None] | None:
        """Return what is to be told of each point of a learning curve; None where nobody looks."""
        if not self.live:
            return None
        from stages.plumbing.live import Live

        return Live(self.stage, self.scratch.name, part)

    @cached_property
    def scratch(self) -> Path:
        """A folder that outlives a killed run; its name is the hash of the stage's params and inputs."""
        digest = hashlib.blake2b(self.params_json.encode(), digest_size=12)
        for name, path in sorted(self.deps.items()):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    digest.update(f"{name}/{file.relative_to(path)}".encode())
                    with file.open("rb") as stream:
                        digest.update(hashlib.file_digest(stream, "blake2b").digest())
        folder = SCRATCH / self.stage / digest.hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        others = sorted((one for one in folder.parent.iterdir() if one != folder), key=lambda one: one.stat().st_mtime)
        for abandoned in others[: max(0, len(others) - KEEP_RUNS + 1)]:
            shutil.rmtree(abandoned, ignore_errors=True)
        return folder


def main(params_class: type[P], run: Callable[[P, Paths], dict[str, Any]]) -> NoReturn:
    """Run the calling module's stage and exit: 0 done, 1 a fault of input or machine, 130 interrupted."""
    name = sys.modules["__main__"].__spec__.name.rpartition(".")[2]  # type: ignore[union-attr]
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO").upper(), format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "gguf", "trafilatura"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _explained(name):
        params, paths = load_stage(name, params_class, *sys.argv[1:])
        paths.live = True
        _seed(params)
        started = time.monotonic()
        metrics = run(params, paths)
        for target, partial in paths.outs.items():
            _publish(partial, Path(target))
        _write_reports(paths, metrics, time.monotonic() - started)
    if "scratch" in paths.__dict__ and not params.RESUMABLE:
        shutil.rmtree(paths.scratch, ignore_errors=True)
    _show(name)
    sys.exit(0)


def load_stage(name: str, params_class: type[P], *arguments: str) -> tuple[P, Paths]:
    """Return the validated params and the paths of a stage.

    `arguments` are a source's name and what dvc writes behind it, `--path ... --watch ...`, its entry of
    ingest.sources: it stands in the command so that a change of it runs that source again. It is read from params.yaml.
    """
    tree, dag = read_yaml(Path("params.yaml")), read_yaml(Path("dvc.yaml"))
    stages = dag["stages"]
    require_known_sections(tree, stages)
    params = parse_params(name, params_class, tree)
    sources = list_sources(tree, dag) if "ingest" in stages else {}
    entry, item = stages[name], arguments[0] if arguments else None
    values = {}
    if "foreach" in entry:
        require(item in sources, f"python -m stages.{name} SOURCE: one of {', '.join(sources)}")
        _require_same(sources[arguments[0]], name, *arguments)
        assert item is not None
        entry, values = (
            entry["do"],
            {"${key}": item, **{f"${{item.{k}}}": v for k, v in sources[item].items()}},
        )

    def fill(text: str) -> str:
        for key, value in values.items():
            text = text.replace(key, str(value))
        return text

    deps = {fill(dep): Path(fill(dep)) for dep in entry.get("deps", [])}
    missing = [path for path in deps if not Path(path).exists()]
    require(not missing, f"stage {name}: {', '.join(missing)} does not exist; run `dvc repro` (make run)")
    outs = {fill(out): SCRATCH / "partial" / fill(out) for out in entry.get("outs", []) if isinstance(out, str)}
    for partial in outs.values():
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
    judged = tuple(one for one, entry in sources.items() if entry.get("use") == "evaluation")
    trained = tuple(one for one in sources if one not in judged)
    return params, Paths(
        name, deps, outs, item, sources.get(item or "", {}), trained, judged, params_json=params.describe_state()
    )


def _require_same(source: dict[str, Any], name: str, item: str, *options: str) -> None:
    """Refuse a path typed behind a source's name that is not the one in params.yaml: it would not be read."""
    given = options[options.index("--path") + 1] if "--path" in options[:-1] else source["path"]
    require(given == str(source["path"]), f"{name}.sources.{item}.path is {source['path']}: edit params.yaml instead")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML mapping, or raise ConfigError naming the file and line."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except (yaml.YAMLError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error
    require(isinstance(content, dict), f"{path}: expected a mapping of sections")
    return dict(content)


def require_known_sections(tree: dict[str, Any], stages: dict[str, Any]) -> None:
    """Raise ConfigError for a section of params.yaml that nothing reads; `serve` is the server's, not a stage's."""
    allowed = ["base", *stages, "serve"]
    unknown = sorted(set(tree) - set(allowed))
    require(not unknown, f"params.yaml: unknown section {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def list_sources(tree: dict[str, Any], dag: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name -> entry of every source: those of params.yaml and those that dvc.yaml always adds."""
    ours = [entry["ingest"]["sources"] for entry in dag.get("vars", []) if "ingest" in entry]
    given = (tree.get("ingest") or {}).get("sources")
    require(
        isinstance(given, dict)
        and bool(given)
        and all(isinstance(one, dict) and {"path", "watch"} <= set(one) for one in given.values()),
        "params.yaml: ingest.sources: expected NAME: {path: ..., watch: ...} for each source, "
        "e.g. `book: {path: texts/book.txt, watch: texts/book.txt}`; format, columns, license ... may follow",
    )
    merged = dict(given)  # type: ignore[arg-type]
    for extra in ours:
        merged.update(extra)
    return merged


def parse_params(name: str, params_class: type[P], tree: dict[str, Any]) -> P:
    """Return the stage's params, or raise one ConfigError that lists every problem with its key."""
    try:
        return params_class.model_validate({**(tree.get(name) or {}), "base": tree.get("base") or {}})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = [str(part) for part in problem["loc"]]
            key = ".".join(where if where[:1] == ["base"] else [name, *where])
            if problem["type"] == "extra_forbidden":
                section, allowed = key.rpartition(".")[0], _fields_at(params_class, where[:-1])
                lines.append(f"{key}: unknown key; allowed in {section}: {', '.join(allowed)}")
            else:
                lines.append(f"{key}: {problem['msg']} (got {problem['input']!r})")
        raise ConfigError("params.yaml: " + "\n             ".join(lines)) from error


def _fields_at(model: Any, where: list[str]) -> list[str]:
    """Return the keys of the model that stands at a place within another: a field's, or a value's of a mapping."""
    for part in where:
        fields = getattr(model, "model_fields", None)
        model = fields[part].annotation if fields else get_args(model)[-1]
        if isinstance(model, UnionType):  # X | None
            model = get_args(model)[0]
    return list(model.model_fields)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn expected faults into one clear message and an exit code; a bug keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        log.error("%s: interrupted; what is finished is kept. Run again to continue.", name)
        sys.exit(130)
    except ConfigError as error:
        log.error("%s: %s", name, error)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        log.error(
            "%s: %s%s. Nothing finished is lost: mend it and run again to continue.",
            name,
            error.strerror,
            where,
        )
        sys.exit(1)


def _seed(params: StageParams) -> None:
    random.seed(params.base.seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(params.base.seed)
        torch.set_num_threads(params.base.threads)


def _publish(partial: Path, final: Path) -> None:
    require(partial.exists(), f"{final}: the stage wrote nothing")
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(partial, final)


def _write_reports(paths: Paths, metrics: dict[str, Any], seconds: float) -> None:
    name = paths.stage if paths.item is None else f"{paths.stage}/{paths.item}"
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cost = {
        "stage": name,
        "seconds": round(seconds, 2),
        "peak_memory_bytes": max(usage) * 1024,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": _device(),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        **paths.cost,
    }
    report = Path("reports") / f"{name}.json"
    write_json(report, {"stage": name, "metrics": metrics})
    cost["report_digest"] = hashlib.blake2b(report.read_bytes(), digest_size=8).hexdigest()  # they belong together
    write_json(Path("reports/runs") / f"{name}.json", cost)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write sorted JSON under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf8")
    os.replace(partial, path)


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _show(name: str) -> None:
    """Mirror the reports to MLflow and render the page: views, which may fail without failing the stage."""
    from stages.plumbing.mirror import mirror
    from stages.plumbing.report import render

    for view in ([lambda: mirror(name, Path("."))] if name else []) + (
        [lambda: render(Path("."))] if name in ("evaluate", "package") else []
    ):
        try:
            view()
        except Exception as error:  # noqa: BLE001 - a view is never worth a lost stage; it says what failed
            log.warning("%s: could not update a view of the reports: %s: %s", name, type(error).__name__, error)
