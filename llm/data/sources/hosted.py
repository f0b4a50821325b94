"""Rows of a Hugging Face dataset: from the Hub by name, streamed, or from a folder here, `save_to_disk` ones too.

A dataset that cannot be reached stops the run at once: half of it would be another corpus under the same name.
"""

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.data.rows.formats import SourceFormat

PROBE_TIMEOUT_S = 6.0
_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w.-]+)?$")
_FILE = re.compile(
    r"\.(txt|md|rst|html?|pdf|jsonl?|csv|tsv|parquet|arrow|warc|zip|tar|t?gz|bz2|xz|zst)$", re.IGNORECASE
)


def is_hosted(locator: str) -> bool:
    """Say whether a locator is a dataset: `hf:...`, a folder of `save_to_disk`, or a name that can be no path here."""
    if locator.startswith("hf:") or is_saved(Path(locator)):
        return True
    local = Path(locator).exists() or Path(locator.split("/")[0]).exists() or _FILE.search(locator)
    return bool(_NAME.match(locator)) and not local


def is_saved(folder: Path) -> bool:
    """Say whether a folder was written by `save_to_disk`: one split, or a dictionary of them."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def read_hosted(locator: str, fmt: SourceFormat) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, row) of a dataset's split, up to `max_records`, or until `max_bytes` of text are read.

    Args:    locator: [hf:]NAME[@CONFIG], or a folder.  fmt: also names configuration and split.
    Raises:  ConfigError: no such dataset, configuration or split, or it cannot be reached.
    """
    name, _, config = locator.removeprefix("hf:").partition("@")
    folder = Path(name).expanduser()
    if not folder.exists():
        _probe(name)
    size_bytes = 0
    try:
        for number, row in enumerate(islice(_open(name, folder, fmt.config or config, fmt.split), fmt.max_records), 1):
            yield number, row
            size_bytes += sum(len(value.encode("utf-8", "replace")) for value in row.values() if isinstance(value, str))
            if size_bytes >= fmt.max_bytes:
                return
    except ConfigError:
        raise
    except Exception as error:  # anything may come out of a library that reads other people's formats
        raise ConfigError(f"{locator}: cannot be read as a dataset ({_describe(error)})") from error


def _open(name: str, folder: Path, config: str, split: str) -> Iterator[Mapping[str, Any]]:
    from datasets import DatasetDict, load_dataset, load_from_disk  # heavy, and needed by such sources only

    if not is_saved(folder):
        where = str(folder) if folder.exists() else name
        return iter(load_dataset(where, config or None, split=split, streaming=True))
    saved = load_from_disk(str(folder))
    if isinstance(saved, DatasetDict):
        require(split in saved, f"{folder}: there is no split {split!r}; there are {', '.join(map(str, saved))}")
        saved = saved[split]
    return iter(saved)


def _probe(name: str) -> None:
    """Ask the Hub once for the dataset: the library itself would try six times, for 24 seconds."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return  # what is in the cache can be read, and is found at once
    try:
        HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(name, timeout=PROBE_TIMEOUT_S)
    except (RepositoryNotFoundError, HFValidationError, GatedRepoError) as error:
        gated = isinstance(error, GatedRepoError)
        problem = "is shown to those only who accepted its terms" if gated else "is not on the Hugging Face Hub"
        raise ConfigError(f"{name}: no file or folder here has this name, and it {problem}") from error
    except Exception as error:  # every HTTP library has its own
        raise ConfigError(
            f"{name}: no file or folder here has this name, and the Hugging Face Hub cannot be asked for a dataset of "
            f"this name ({_describe(error)}); set HF_HUB_OFFLINE=1 to read one that was downloaded before"
        ) from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
