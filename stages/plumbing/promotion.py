"""Choose which release is the champion: `python -m flows.promote`.

    python -m flows.promote                    list the versions
    python -m flows.promote --version 3        make version 3 the champion, if it may be
    python -m flows.promote --rollback         put back the champion before

A version may be champion when its release gate passed, its files agree with their checksums and, where there is a
champion, it is not worse than that by more than a margin on the items that both have answered. Each version remembers
the champion that it replaced, so a rollback can be repeated down to the first. The exit status is 1 on a refusal.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config import ConfigError, require
from llm.evals.non_inferiority import Margins, compare_releases
from llm.export.verify import release_hash
from stages.plumbing.mirror import find_database

if TYPE_CHECKING:
    from stages.plumbing.tracking import Registry, Version

JUDGE = Path("models/reward/second")
PREFERENCES = Path("data/clean/preferences.parquet")


def promote(registry: "Registry", number: int, margins: Margins, root: Path, dry_run: bool) -> str:
    """Make a version the champion; return what was done. Raises ConfigError: it may not be."""
    versions = registry.list()
    chosen = find_version(versions, number)
    champion = find_champion(versions)
    if champion == chosen:
        return f"version {number} is the champion already"
    require_released(chosen, root)
    if champion is not None:
        challenger_items, champion_items = (registry.read_items(version) for version in (chosen, champion))
        compare(chosen, challenger_items, champion, champion_items, margins, root)
    if dry_run:
        return f"version {number} ({chosen.release}) would become the champion; nothing was changed"
    registry.crown(chosen, champion)
    return f"version {number} ({chosen.release}) is the champion"


def roll_back(registry: "Registry", root: Path, dry_run: bool) -> str:
    """Put back the champion before; return what was done. Raises ConfigError: there is none, or its gate failed."""
    versions = registry.list()
    fallen = find_champion(versions)
    require(fallen is not None, "there is no champion to roll back: promote a version first")
    assert fallen is not None
    before = fallen.before
    require(before is not None, f"version {fallen.number} is the first champion: there is none before it")
    assert before is not None
    restored = find_version(versions, before)
    require(restored.passed, f"version {before}: its release gate has failed since; promote another version")
    done = f"version {before} ({restored.release}) {'would be' if dry_run else 'is'} the champion again"
    try:
        read_files(restored, root)
    except ConfigError as error:
        done += f"; but its files are not at hand: {error}"
    if not dry_run:
        registry.restore(restored, fallen)
    return done


def find_version(versions: list["Version"], number: int) -> "Version":
    """Return a version by its number."""
    found = [version for version in versions if version.number == number]
    known = ", ".join(str(version.number) for version in versions) or "none: package a release first (make run)"
    require(bool(found), f"there is no version {number}; there are {known}")
    return found[0]


def find_champion(versions: list["Version"]) -> "Version | None":
    """Return the present champion."""
    return next((version for version in versions if "champion" in version.aliases), None)


def require_released(version: "Version", root: Path) -> None:
    """Refuse a version whose gate failed, in the registry or in its own files, or whose files are gone or differ."""
    about = read_files(version, root) if version.passed else {"gate": {"passed": False, "checks": []}}
    failed = [str(row["name"]) for row in about["gate"].get("checks", []) if not row["passed"]]
    require(
        version.passed and about["gate"]["passed"] is True,
        f"version {version.number} ({version.release}) did not pass its release gate"
        f"{': ' + ', '.join(failed) if failed else ''}; its model card says what to do next",
    )


def read_files(version: "Version", root: Path) -> dict[str, Any]:
    """Return release.json of a version. Raises ConfigError: its files are gone or differ from their checksums."""
    from llm.export.releases import read_release  # imports torch, which a list and the help do not wait for

    return read_release(version.release, root)


def compare(
    challenger: "Version",
    challenger_items: Mapping[str, Any],
    champion: "Version",
    champion_items: Mapping[str, Any],
    margins: Margins,
    root: Path,
) -> None:
    """Print the table; raise ConfigError unless the challenger is non-inferior in every measure."""
    both = [challenger_items, champion_items]
    if challenger_items["judge"] != champion_items["judge"]:
        print(f"the reward models differ: both versions' answers are judged by version {challenger.number}'s")
        both = judge_both(challenger, challenger_items["judge"], both, root)
    table = compare_releases(both[0], both[1], margins)
    print(f"challenger: version {challenger.number} ({challenger.release})")
    print(f"champion:   version {champion.number} ({champion.release})")
    for row in table:
        print(row)
    failed = [row.measure for row in table if not row.passed]
    require(
        not failed,
        f"version {challenger.number} may be worse than the champion by more than the margin, or has too few items in "
        f"common with it: {', '.join(failed)}. More items settle more: package.questions and package.prompts",
    )


def judge_both(
    challenger: "Version", judge: str, items: list[Mapping[str, Any]], root: Path
) -> list[Mapping[str, Any]]:
    """Return both releases' items with the scores of the challenger's judge, which must be the one on disk."""
    # Only here are torch and a model needed.
    from llm.data.schema import iter_rows
    from llm.data.tokenizer import Tokenizer
    from llm.evals.asked import choose_prompts
    from llm.evals.served import judge_again
    from llm.rl.reward_model import RewardModel

    folder = root / JUDGE
    require(
        folder.is_dir() and release_hash(folder) == judge and (root / PREFERENCES).is_file(),
        f"{JUDGE} is not the reward model that judged version {challenger.number}: check its commit "
        f"{challenger.commit[:12] or 'out'} out, with `dvc checkout models/reward data/clean`",
    )
    model, tokenizer = RewardModel.load(folder), Tokenizer.load(folder)
    rows = (row for row in iter_rows(root / PREFERENCES) if row["split"] == "val")
    prompts = choose_prompts(tokenizer, rows, model.trunk.config.context - 2, sys.maxsize, {}).prompts
    return [{**one, "prompts": judge_again(one["prompts"], prompts, model, tokenizer)} for one in items]


def describe(versions: list["Version"]) -> str:
    """Return a line per version."""
    lines = [
        f"{version.number:>4}  {version.release}  gate {'passed' if version.passed else 'failed'}  "
        f"{', '.join(version.aliases)}"
        for version in versions
    ]
    return "\n".join(line.rstrip() for line in lines) or "no version yet: package a release first (make run)"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__, formatter_class=formatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--version", type=int, metavar="N", help="the version to make champion")
    chosen.add_argument("--rollback", action="store_true", help="put back the champion before the present one")
    parser.add_argument("--dry-run", action="store_true", help="check and say, but change nothing")
    for name, field in Margins.model_fields.items():
        about = f"how much worse the mean may be: {field.description} (default {field.default})"
        parser.add_argument(f"--{name}-margin", type=float, dest=name, default=field.default, metavar="X", help=about)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Do what the options say; 1 on a refusal."""
    options, root = parse(arguments), Path(".")
    uri = find_database(root)
    local = Path(uri.removeprefix("sqlite:///"))
    try:
        require(
            not uri.startswith("sqlite:") or local.is_file(),
            f"{local}: no such file; `make run` packages a release and registers it, `make mlflow` registers one again",
        )
        margins = Margins(**{name: getattr(options, name) for name in Margins.model_fields})
        from stages.plumbing.tracking import Registry  # imports MLflow, which takes seconds

        registry = Registry(uri)
        if options.rollback:
            print(roll_back(registry, root, options.dry_run))
        elif options.version is not None:
            print(promote(registry, options.version, margins, root, options.dry_run))
        else:
            print(describe(registry.list()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
