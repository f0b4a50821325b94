"""Quality in the report: bits per byte against baselines, the four-way choice, and every task with its interval."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from stages.plumbing.report_dots import Mark, Row, plot_dots, show_share
from stages.plumbing.report_numbers import Json, in_order, is_number, number, percent, read_figure, section, size

MODELS = ("base", "sft", "policy")
BASELINES = {
    "xz": "xz -9e, training text as prefix",
    "zstd": "zstd -19, training text as prefix",
    "ngram": "Kneser-Ney bytes",
}
CHOICES = {name: name for name in MODELS} | {
    "word_overlap": "words shared with the name",
    "blanked": "sft, name blanked",
}
CHANCE = 0.25
HIGHER_IS_BETTER = ("accuracy", "exact_match", "probability_of_right")  # and what begins so: accuracy_per_token
LOWER_IS_BETTER = ("bits_per_byte", "nats_per_token", "perplexity")


def describe_language(evaluate: Json) -> dict[str, Any] | None:
    """Bits per byte of the models and of every baseline, as bars."""
    if not section(evaluate, "bits_per_byte") or not section(evaluate, "baselines"):
        return None
    baselines, text = evaluate["baselines"], evaluate.get("text", {})
    names = {**BASELINES, "ngram": f"{BASELINES['ngram']}, order {text.get('ngram_order', '?')}"}
    rows = [(f"{name} model", value, True) for name, value in evaluate["bits_per_byte"].items()]
    # Uniform's 8 bits would squeeze the bars of all the others; the page names them in words.
    rows += [(names.get(name, name), value, False) for name, value in baselines.items() if name != "uniform"]
    best = min(baselines, key=lambda name: baselines[name])
    base = evaluate["bits_per_byte"]["base"]
    gap = abs(1 - base / baselines[best])
    if base < baselines[best]:
        claim = f"It codes unseen text {percent(gap, 0)} shorter than the best baseline"
        caption = (
            f"A byte of held-out text costs the base model {number(base)} bits, and {number(baselines[best])} the best "
            f"baseline ({best}), which read the same training text. So the model has learnt more of the language than "
            "can be copied (xz, zstd) or counted in runs of a few bytes (Kneser-Ney)."
        )
    else:
        claim = f"It does not yet beat {best} on unseen text"
        caption = (
            f"A byte of held-out text costs the base model {number(base)} bits, but only {number(baselines[best])} "
            f"with {best} and the same training text. Train longer, or a larger model, before reading on."
        )
    if text.get("baseline_bytes_left_out"):
        left_out = size(text["baseline_bytes_left_out"])
        caption += f" The baselines did not read the last {left_out} of the training text: their figures are too high."
    return {"claim": claim, "caption": caption, "text": text, "rows": bars(rows)}


def bars(rows: Sequence[tuple[str, float, bool]]) -> list[dict[str, Any]]:
    """Rows with their share of the largest value in percent, smallest first."""
    top = max((value for _, value, _ in rows), default=1) or 1
    ordered = sorted(rows, key=lambda row: row[1])
    return [{"name": n, "value": value, "share": 100 * value / top, "ours": ours} for n, value, ours in ordered]


def describe_choices(evaluate: Json) -> dict[str, Any] | None:
    """Accuracy with interval of every model and both guards."""
    found = section(evaluate, "multiple_choice")
    figures = {name: figure for name in CHOICES if (figure := read_figure(found.get(name), "accuracy")) is not None}
    rows = [Row(CHOICES[name], figure, name in MODELS) for name, figure in figures.items()]
    if not rows:
        return None
    sft, blanked, overlap = (figures.get(name) for name in ("sft", "blanked", "word_overlap"))
    if sft and sft.low > CHANCE:
        knows = overlap and sft.low > overlap.value
        claim = "It knows what functions are for" if knows else "It chooses better than by chance"
        caption = (
            f"Right answers of four: sft's whole interval ({percent(sft.low, 0)} to {percent(sft.high, 0)}) lies above "
            "the 25 % of guessing."
        )
    else:
        claim = "It cannot yet tell what functions are for"
        caption = "Right answers of four: sft's interval includes the 25 % of guessing."
    if overlap:
        caption += (
            f" A rule that looks for the name's words in the option is right in {percent(overlap.value, 0)}: below "
            "that a model does not read names well, above it it must know what they mean."
        )
    if blanked:
        caption += (
            " With the name blanked it guesses, so nothing else gives the answer away."
            if blanked.low <= CHANCE <= blanked.high
            else " With the name blanked it is off 25 %: something else gives answers away; trust no figure here."
        )
    plot = plot_dots(rows, Mark(CHANCE, "25 %: chance"), (0.0, 1.0), show_share)
    return {"claim": claim, "caption": caption, "plot": plot, "n": rows[0].figure.n}


def describe_tasks(evaluate: Json) -> list[dict[str, Any]]:
    """Every task: its models as dots with whiskers, one plot for each measure."""
    tasks = []
    for name, task in sorted(section(evaluate, "tasks").items()):
        found: dict[str, list[Row]] = {}
        for model, measures in in_order(task, MODELS):
            if model == "contaminated" or not isinstance(measures, Mapping):
                continue
            for measure, one in sorted(measures.items()):
                if isinstance(one, Mapping) and (figure := read_figure(one)) is not None:
                    found.setdefault(measure, []).append(Row(model, figure, model == "policy"))
        plots = [
            {"title": measure.replace("_", " "), "plot": plot_measure(rows), "caption": judge_measure(measure, rows)}
            for measure, rows in found.items()
        ]
        if plots:
            counts = {row.figure.n for rows in found.values() for row in rows if row.figure.n is not None}
            tasks.append({"name": name.replace("_", " "), "note": note_task(task, counts), "plots": plots})
    return tasks


def plot_measure(rows: Sequence[Row]) -> dict[str, Any]:
    """Shares on a scale from none to all; anything else on its own."""
    if all(row.figure.low >= 0 and row.figure.high <= 1 for row in rows):
        return plot_dots(rows, None, (0.0, 1.0), show_share)
    return plot_dots(rows)


def judge_measure(measure: str, rows: Sequence[Row]) -> str:
    """Whether each model is told apart from the one it was made from: by intervals that do not overlap."""
    figures = {row.name: row.figure for row in rows}
    words = []
    for before, after in pairwise(name for name in MODELS if name in figures):
        old, new = figures[before], figures[after]
        if new.low <= old.high and old.low <= new.high:
            words.append(f"{after} and {before} overlap: no difference is shown.")
        else:
            words.append(f"{after} is {compare(measure, new.value > old.value)} than {before}.")
    if words and all("overlap" in one for one in words):
        return "The intervals overlap: no difference is shown."
    return " ".join(words) or "One model only: nothing to compare with."


def compare(measure: str, more: bool) -> str:
    """What more or less of a measure is: nothing but that, unless one knows which is good."""
    if measure.startswith(HIGHER_IS_BETTER):
        return "better" if more else "worse"
    if measure.startswith(LOWER_IS_BETTER):
        return "worse" if more else "better"
    return "higher" if more else "lower"


def note_task(task: Json, counts: set[int]) -> str:
    """How it was asked, and what the items that lie in the training text give alone."""
    words = []
    if counts:
        words.append(f"n {' to '.join(number(n) for n in sorted({min(counts), max(counts)}))}")
    if is_number(task.get("few_shot")):
        words.append(f"{number(task['few_shot'])} examples shown")
    if is_number(task.get("seed")):
        words.append(f"seed {task['seed']}")
    note = "; ".join(words)
    if "contaminated" in task:
        found = read_figure(task["contaminated"])
        told = "no item lies in the training text"
        if found is not None:
            reach = f" ({number(found.low)} to {number(found.high)})" if found.low < found.high else ""
            told = f"on the {number(found.n)} items that lie in the training text {number(found.value)}{reach}"
        note += f"{'; ' if note else ''}{told}"
    return note
