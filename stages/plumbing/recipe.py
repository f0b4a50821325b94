"""Set params.yaml from a recipe or for one's own text, and check every section before any compute is spent.

    python -m stages.plumbing.recipe                       check params.yaml
    python -m stages.plumbing.recipe --recipe smoke        take recipes/smoke.yaml
    python -m stages.plumbing.recipe --source ../my/texts  read this folder, file, glob or dataset instead
    python -m stages.plumbing.recipe --init-from ../Qwen3  start from this model, or from a release's hash

Refuses to overwrite a params.yaml that was edited: one that is neither committed nor equal to a recipe.
"""

import argparse
import glob
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from llm.config import ConfigError, require
from llm.data.sources.hosted import is_hosted
from llm.data.sources.locations import is_url
from llm.data.tokenizer import adopt_tokenizer
from llm.export.releases import copy_release
from llm.model.files import digest_folder
from llm.model.folder import read_config
from llm.serve.params import ServeParams
from stages.plumbing.stage import list_sources, parse_params, read_yaml, require_known_sections

PARAMS, RECIPES = Path("params.yaml"), Path("recipes")


def write_params(recipe: str | None, source: str | None, init_from: str | None = None) -> None:
    """Bring params.yaml to a recipe, or keep it as it is, with `source` as its text and `init_from` as its start."""
    current = PARAMS.read_text(encoding="utf8") if PARAMS.exists() else ""
    wanted = read_recipe(recipe) if recipe else current
    if source:
        wanted = with_source(wanted, source)
    if init_from:
        wanted = with_start(wanted, init_from)
    if wanted == current:
        return
    require(
        not recipe or is_expendable(current),
        "params.yaml holds edits that are neither committed nor a recipe: commit or discard them first",
    )
    PARAMS.write_text(wanted, encoding="utf8")


def read_recipe(name: str) -> str:
    """Return the text of a file of recipes/."""
    recipe = RECIPES / f"{Path(name).stem}.yaml"
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    require(recipe.is_file(), f"RECIPE={name}: no such recipe; there are {known}")
    return recipe.read_text(encoding="utf8")


def is_expendable(text: str) -> bool:
    """Say whether this params.yaml can be had again: it is empty, a recipe, or what git has."""
    if not text or any(text == recipe.read_text(encoding="utf8") for recipe in RECIPES.glob("*.yaml")):
        return True
    committed = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, text=True, check=False)
    return committed.returncode == 0 and committed.stdout == text


def with_source(text: str, path: str) -> str:
    """Return params with `path` as the only text source; the built-in chat data is not among them and stays."""
    matches = [] if is_url(path) else glob.glob(path, recursive=True)
    require(
        bool(matches) or is_url(path) or is_hosted(path),
        f"SOURCE={path}: no such folder, file, glob or URL, and no dataset name (NAME or ORGANISATION/NAME)",
    )
    fixed = urlsplit(path).netloc + urlsplit(path).path if is_url(path) else path.removeprefix("hf:")
    while glob.has_magic(fixed):
        fixed = str(Path(fixed).parent)
    last = Path(fixed).resolve().name.lstrip(".").partition(".")[0]
    name = re.sub(r"\W+", "-", last).strip("-").lower() or "text"
    params = _yaml().load(text)
    params["ingest"]["sources"] = {
        name: {"path": DoubleQuotedScalarString(path), "watch": fixed if matches else "requirements.lock"}
    }
    return _dump(params)


def with_start(text: str, where: str) -> str:
    """Return params that start from a model folder or a release, checked and with the digest of its content.

    Where params.yaml started from no model so far, pretrain.steps becomes 0: sft and what follows apply to the model
    as it is. Raise steps afterwards to pretrain it further.
    """
    release = where.removesuffix("-not-released")
    is_release = re.fullmatch("[0-9a-f]{16}", release) is not None and not Path(where).exists()
    folder = copy_release(release) if is_release else Path(where)
    require(folder.is_dir(), f"INIT_FROM={where}: no such folder, and no release hash (16 hex digits)")
    config, tokenizer = read_config(folder), adopt_tokenizer(folder)
    require(
        config.vocab_size >= tokenizer.vocab_size,
        f"INIT_FROM={where}: the model has {config.vocab_size} embeddings, its tokenizer {tokenizer.vocab_size} "
        f"tokens: resize them with transformers' resize_token_embeddings",
    )
    params = _yaml().load(text)
    start = {"path": DoubleQuotedScalarString(str(folder)), "digest": DoubleQuotedScalarString(digest_folder(folder))}
    if is_release:
        start["release"] = DoubleQuotedScalarString(release)
    if params.get("base") is None:
        params["base"] = {}
    if "init_from" not in params["base"]:
        params["pretrain"]["steps"] = 0
    params["base"]["init_from"] = start
    return _dump(params)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 120
    return yaml


def _dump(params: Any) -> str:
    stream = io.StringIO()
    _yaml().dump(params, stream)
    return stream.getvalue()


def check_params() -> None:
    """Raise ConfigError for the first faulty section, and for a source whose watched path is missing."""
    tree, dag = read_yaml(PARAMS), read_yaml(Path("dvc.yaml"))
    require_known_sections(tree, dag["stages"])
    for name, source in list_sources(tree, dag).items():
        require(
            Path(source["watch"]).exists(),
            f"params.yaml: ingest.sources.{name}.watch: {source['watch']} does not exist; "
            f"name the file or folder whose change means that the source is read again",
        )
    for name in dag["stages"]:
        parse_params(name, importlib.import_module(f"stages.{name}").Params, tree)
    ServeParams.read(PARAMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="a file of recipes/")
    parser.add_argument("--source", help="folder, file, archive, glob, fsspec URL or Hugging Face dataset name")
    parser.add_argument("--init-from", help="a Qwen3-shaped Hugging Face folder, or the hash of a release of ours")
    arguments = parser.parse_args()
    try:
        write_params(arguments.recipe, arguments.source, arguments.init_from)
        check_params()
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
