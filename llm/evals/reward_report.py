"""What a reward model's preferences are worth on given pairs: accuracy, calibration, length bias and cost heads.

    python -m llm.evals.reward_report --model models/reward PAIRS... [--json]

PAIRS are files, folders or dataset names that `ingest` can read (transcripts as HH-RLHF has them, two outputs and a
label as LLMBar has them, chosen and rejected answers), or preferences.parquet of data/clean, of which the held-out
split is judged. What cannot be judged is left out under a reason and counted: blank replies, equal answers, differing
prompts, labels of a wrong type, no answer, pairs over the model's context. Every figure is shown, those at chance too.

N pairs, S = 2 sides (chosen, rejected), H heads.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llm.config import ConfigError
from llm.data.rows.formats import SourceFormat
from llm.data.schema import Preference, iter_rows
from llm.data.sources.read import Kept, Rejected, read_source
from llm.data.tokenizer import Tokenizer
from llm.evals.discrimination import measure_calibration, measure_pairs
from llm.evals.statistics import Floats, as_metrics, wilson_interval
from llm.rl.length import fit_length_slope, remove_length
from llm.rl.pairs import Pair, tokenize_pairs
from llm.rl.reward_model import HEADS, PRINCIPLES, RewardModel

COLUMNS = set(Preference.schema.names)


@dataclass(frozen=True)
class Judgeable:
    """The pairs of one source that can be judged, the group of each, and how many records cannot be, by reason."""

    pairs: list[Pair]
    groups: list[str]
    num_read: int
    rejected: Counter[str]


def read_pairs(locator: str, tokenizer: Tokenizer, max_tokens: int) -> Judgeable:
    """Return the pairs of a source. Raises ConfigError: there is nothing at the locator, or no reader for it."""
    rejected: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    if is_clean(Path(locator)):
        for row in iter_rows(Path(locator)):
            if row["split"] == "val":
                rows.append(row)
            else:
                rejected["in_training_split"] += 1
    else:
        for outcome in read_source(locator, Path(locator).name, SourceFormat()):
            if isinstance(outcome, Rejected):
                rejected[outcome.reason] += 1
            elif isinstance(outcome, Kept):
                found = [one for one in outcome.records if isinstance(one, Preference)]
                rows += [{name: getattr(one, name) for name in COLUMNS} for one in found]
                rejected["no_pair"] += not found
    pairs = tokenize_pairs(tokenizer, rows, max_tokens)
    num_read = len(rows) + rejected.total()
    rejected["over_context"] = len(rows) - len(pairs)
    groups = {row["id"]: row["group"] for row in rows}
    return Judgeable(pairs, [groups[pair.id] for pair in pairs], num_read, +rejected)


def is_clean(path: Path) -> bool:
    """Say whether a file is preferences.parquet of data/clean, whose rows have a split."""
    return path.suffix == ".parquet" and path.is_file() and {*COLUMNS, "split"} <= set(pq.read_schema(path).names)


def judge_pairs(model: RewardModel, pairs: Sequence[Pair]) -> Floats:
    """Return the logits [N, S, H] of pairs."""
    rows = [pair.prompt + answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    logits: Floats = model.compute_logits(rows).double().numpy().reshape(len(pairs), 2, len(HEADS))
    return logits


def summarise_pairs(pairs: Sequence[Pair], groups: Sequence[str], logits_NSH: Floats) -> dict[str, Any]:
    """Return accuracy per kind, calibration, length bias and the cost heads' AUROC, as reports hold them.

    A pair of which neither answer is the more helpful one counts for its cost head alone. Equal rewards are half right.

    Args:    groups: what each pair belongs to; the AUROC's interval resamples whole groups, the accuracy's takes pairs
             as independent.  logits_NSH: as `judge_pairs` returns them.
    """
    own = [i for i, pair in enumerate(pairs) if not pair.tie]
    ranked, margin_N = [pairs[i] for i in own], logits_NSH[own, 0, 0] - logits_NSH[own, 1, 0]
    right_N = np.where(margin_N == 0, 0.5, margin_N > 0)
    metrics: dict[str, Any] = {"accuracy": {}, "ties": len(pairs) - len(own), "cost": {}}
    for kind in ["all", *sorted({pair.kind for pair in ranked})] if ranked else []:
        right = [right_N[i] for i, pair in enumerate(ranked) if kind in ("all", pair.kind)]
        metrics["accuracy"][kind] = as_metrics(wilson_interval(float(np.sum(right)), len(right)))
    is_fit_N = np.array([pair.half == 0 for pair in ranked], dtype=bool)
    if is_fit_N.any() and not is_fit_N.all():
        positive_N = np.ones(len(ranked), dtype=bool)
        metrics["calibration"] = measure_calibration(margin_N, positive_N, is_fit_N).metrics()
    whole = [i for i in own if pairs[i].kind != "truncated"]
    if whole:
        metrics["length"] = measure_length([pairs[i] for i in whole], logits_NSH[whole, :, 0])
    for principle in PRINCIPLES:
        rows = [i for i, pair in enumerate(pairs) if pair.principle == principle]
        for kind in ("all", *sorted({pairs[i].kind for i in rows})):
            own_rows = [i for i in rows if kind in ("all", pairs[i].kind)]
            auroc = measure_pairs(logits_NSH[own_rows, :, HEADS.index(principle)], [groups[i] for i in own_rows])
            if auroc is not None:
                name = "auroc" if kind == "all" else f"auroc_{kind}"
                metrics["cost"].setdefault(principle, {})[name] = as_metrics(auroc)
    return metrics


def measure_length(pairs: Sequence[Pair], reward_NS: Floats) -> dict[str, Any]:
    """Return how far the reward follows length in pairs of whole answers (not of kind `truncated`), at least one.

    longer_chosen, longer_preferred: shares of pairs in which the longer answer is better by the label, by the reward.
    correlation: of reward and length within pairs, in [-1, 1]. slope: reward per token beside the label, fitted on one
    half; `as_is` and `corrected` are of the other half, with and without that slope.
    """
    length_NS = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=np.float64)
    longer_N = length_NS[:, 0] - length_NS[:, 1]
    found = {
        "longer_chosen": float((longer_N[longer_N != 0] > 0).mean()) if longer_N.any() else 0.5,
        **describe_length(reward_NS, length_NS),
    }
    is_fit_N = np.array([pair.half == 0 for pair in pairs])
    if is_fit_N.all() or not is_fit_N.any():
        return found
    prompt, better = np.repeat(np.arange(is_fit_N.sum()), 2), np.tile([1.0, 0.0], is_fit_N.sum())
    slope = fit_length_slope(reward_NS[is_fit_N].ravel(), length_NS[is_fit_N].ravel(), prompt, better)
    reward_NS, length_NS = reward_NS[~is_fit_N], length_NS[~is_fit_N]
    corrected = describe_length(remove_length(reward_NS, length_NS, slope), length_NS)
    return {**found, "slope": slope, "as_is": describe_length(reward_NS, length_NS), "corrected": corrected}


def describe_length(reward_NS: Floats, length_NS: Floats) -> dict[str, float]:
    """Return accuracy, the share of pairs whose longer answer is preferred, and the correlation within pairs."""
    margin_N, longer_N = reward_NS[:, 0] - reward_NS[:, 1], length_NS[:, 0] - length_NS[:, 1]
    right_N = np.where(margin_N == 0, 0.5, margin_N > 0)
    won_N = np.where(margin_N == 0, 0.5, (margin_N > 0) == (longer_N > 0))[longer_N != 0]
    norm = float(np.sqrt((margin_N @ margin_N) * (longer_N @ longer_N)))
    return {
        "accuracy": float(right_N.mean()),
        "longer_preferred": float(won_N.mean()) if len(won_N) else 0.5,
        "correlation": float(margin_N @ longer_N) / norm if norm else 0.0,
    }


def report_source(locator: str, tokenizer: Tokenizer, models: dict[str, RewardModel]) -> dict[str, Any]:
    """Return what every model makes of one source."""
    found = read_pairs(locator, tokenizer, min(model.trunk.config.context for model in models.values()))
    counts = {"read": found.num_read, "judged": len(found.pairs), "rejected": dict(sorted(found.rejected.items()))}
    if not found.pairs:
        return counts
    return {
        **counts,
        **{
            name: summarise_pairs(found.pairs, found.groups, judge_pairs(model, found.pairs))
            for name, model in models.items()
        },
    }


def load_models(folder: Path) -> dict[str, RewardModel]:
    """Return the reward model of a folder, and the second one if it has one."""
    models = {"first": RewardModel.load(folder)}
    if (folder / "second").is_dir():
        models["second"] = RewardModel.load(folder / "second")
    return models


def format_source(locator: str, found: dict[str, Any]) -> str:
    """Return a source's figures as lines of text."""
    rejected = ", ".join(f"{reason} {count}" for reason, count in found["rejected"].items()) or "none"
    lines = [f"{locator}: {found['read']} read, {found['judged']} judged; left out: {rejected}"]
    for name in ("first", "second"):
        lines += [f"  {name:6}  {line}" for line in format_model(found[name])] if name in found else []
    return "\n".join(lines)


def format_model(figures: dict[str, Any]) -> list[str]:
    """Return one model's figures on a source as lines of text; a single kind is not shown beside `all`."""
    kinds = figures["accuracy"] if len(figures["accuracy"]) > 2 else dict(list(figures["accuracy"].items())[:1])
    lines = [f"accuracy {kind:16} {format_share(one)}" for kind, one in kinds.items()]
    lines += [f"AUROC {principle:19} {format_share(one['auroc'])}" for principle, one in figures["cost"].items()]
    if "calibration" in figures:
        fit = figures["calibration"]
        lines.append(
            f"calibration error {fit['ece']:.3f}; {fit['ece_scaled']:.3f} at the temperature {fit['temperature']:.2f} "
            f"of the other half"
        )
    if "length" in figures:
        length = figures["length"]
        lines.append(
            f"longer preferred {length['longer_preferred']:.3f}, longer chosen {length['longer_chosen']:.3f}, "
            f"correlation {length['correlation']:.3f}"
        )
    if "corrected" in figures.get("length", {}):
        before, after = length["as_is"], length["corrected"]
        lines.append(
            f"without {length['slope']:.4f} a token: correlation {before['correlation']:.3f} -> "
            f"{after['correlation']:.3f}, accuracy {before['accuracy']:.3f} -> {after['accuracy']:.3f}"
        )
    return lines


def format_share(one: dict[str, float]) -> str:
    """Return a share with its interval, and whether that holds one half."""
    chance = "  at chance" if one["low"] <= 0.5 <= one["high"] else ""
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]  n {one['n']}{chance}"


def main() -> None:
    """Print the report of every source, or exit with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m llm.evals.reward_report", description="Judge preference pairs by a reward model."
    )
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="file, folder or dataset of preference pairs")
    parser.add_argument("--model", type=Path, default=Path("models/reward"), help="its folder (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        tokenizer, models = Tokenizer.load(options.model), load_models(options.model)
        found = {locator: report_source(locator, tokenizer, models) for locator in options.pairs}
    except ConfigError as error:
        sys.exit(f"error: {error}")
    shown = [format_source(locator, one) for locator, one in found.items()]
    print(json.dumps({"model": str(options.model), "sources": found}, indent=1) if options.json else "\n\n".join(shown))


if __name__ == "__main__":
    main()
