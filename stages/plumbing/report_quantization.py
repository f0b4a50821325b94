"""Quantization in the report: what each file costs, what compensation is worth, which matrices matter."""

from typing import Any

from stages.plumbing.report_dots import Mark, Row, plot_dots
from stages.plumbing.report_numbers import Figure, Json, in_order, number, percent, read_figure, section, signed

FORMATS = ("original", "q8_0", "mixed", "q4_0", "q4_0_rtn")


def describe_card(quantize: Json, run: Json) -> dict[str, Any] | None:
    """Formats with what they cost in quality and, of this run, their speed."""
    card = quantize.get("card")
    if not card:
        return None
    original = card["original"]
    rows = []
    for name, row in in_order(card, FORMATS):
        intervals = section(row, "intervals")
        rows.append(
            {
                "name": name,
                **{key: row[key] for key in ("size_bytes", "bits_per_weight", "bits_per_byte", "agreement")},
                "loss": row["bits_per_byte"] / original["bits_per_byte"] - 1,
                "loss_reach": reach(read_figure(intervals.get("text_loss")), 100 / original["bits_per_byte"]),
                "agreement_reach": reach(read_figure(intervals.get("agreement")), 100, ""),
                "accuracy": read_figure(intervals.get("accuracy")),
                "accuracy_reach": reach(read_figure(intervals.get("accuracy")), 100, ""),
                "speed": run.get(f"{name}_scored_tokens_per_s"),
            }
        )
    losses = {row["name"]: row["loss"] for row in rows}
    caption = "Loss is the rise of bits per byte on held-out documents against the fp32 original; agreement, the share "
    caption += "of equal greedy tokens. Below a figure is its 95 % interval; that of the loss is paired over documents."
    if "q8_0" in losses:
        smaller = number(original["size_bytes"] / card["q8_0"]["size_bytes"], 2)
        caption = f"q8_0 is {smaller} times smaller at {signed(100 * losses['q8_0'], 2)} % bits per byte. " + caption
    compensation = section(quantize, "compensation")
    return {
        "rows": rows,
        "caption": caption,
        "sample": section(quantize, "sample"),
        "own": describe_own_text(card, compensation),
        "sensitivity": describe_sensitivity(section(quantize, "sensitivity"), quantize.get("budget_bits")),
    }


def reach(figure: Figure | None, scale: float, sign: str = "signed") -> str:
    """The ends of an interval in per cent, in words."""
    if figure is None or figure.low == figure.high:
        return ""
    show = (lambda value: signed(value, 2)) if sign else (lambda value: number(value, 3))
    return f"{show(scale * figure.low)} to {show(scale * figure.high)}"


def describe_own_text(card: Json, compensation: Json) -> dict[str, Any] | None:
    """Losses on text that the original itself wrote, and whether compensation is shown to help."""
    losses = [
        Row(name, figure, ours=name != "q4_0_rtn")
        for name, row in in_order(card, FORMATS)
        if name != "original" and (figure := read_figure(section(row, "intervals").get("own_text_loss")))
    ]
    own, text = read_figure(compensation.get("own_text")), read_figure(compensation.get("text"))
    if not losses or own is None or text is None:
        return None
    plain = next((row.figure.value for row in losses if row.name == "q4_0_rtn"), 0.0)
    ends = f"({number(own.low)} to {number(own.high)} bits per byte, paired over {number(own.n)} documents)"
    if own.high < 0:
        taken = f"takes away {percent(-own.value / plain, 0)} of what" if plain > -own.value else "beats what"
        claim = f"Error compensation {taken} plain rounding to four bits loses {ends}."
    elif own.low > 0:
        claim = f"Error compensation is worse than plain rounding to four bits here {ends}."
    else:
        claim = f"Error compensation is not shown to improve on plain rounding to four bits here {ends}."
    other = "excludes" if text.low > 0 or text.high < 0 else "includes"
    why = (
        "On what the original itself writes a changed model loses whatever it changed; on other text rounding may gain "
        f"by chance, because alignment has moved the model away from it. On {number(text.n)} held-out documents the "
        f"difference between the two is {signed(text.value)} bits per byte, and its interval ({number(text.low)} to "
        f"{number(text.high)}) {other} zero."
    )
    return {"plot": plot_dots(losses, Mark(0.0, "original"), show=show_thousandths), "claim": claim, "caption": why}


def show_thousandths(value: float) -> str:
    """Thousandths, with two significant digits."""
    return number(1000 * value, 2)


def describe_sensitivity(matrices: Json, budget_bits: float | None) -> dict[str, Any] | None:
    """Layers in rows, projections in columns: what rounding one matrix to four bits costs, and its kind in `mixed`."""
    if not matrices:
        return None
    table: dict[str, dict[str, Any]] = {}
    for name, found in matrices.items():
        parts = name.removesuffix(".weight").split(".")
        layer, part = (parts[2], parts[-1].removesuffix("_proj")) if "layers" in parts else ("", parts[-1])
        table.setdefault(layer, {})[part] = {**found, "name": f"layer {layer} {part}" if layer else part}
    cells = [cell for row in table.values() for cell in row.values()]
    total = sum(cell["loss"] for cell in cells) or 1.0
    worst = max(cells, key=lambda cell: cell["loss"])
    kept = [cell for cell in cells if cell["kind"] == "q8_0"]
    saved = sum(cell["loss"] for cell in kept)
    caption = (
        f"Rounding {worst['name']} alone to four bits costs most, {number(1000 * worst['loss'])} thousandths of a bit "
        f"per byte. Within {number(budget_bits)} bits per weight the mixed file keeps {len(kept)} of {len(cells)} "
        f"matrices in eight bits, which hold {percent(saved / total, 0)} of the summed losses."
    )
    layers = sorted((int(layer), row) for layer, row in table.items() if layer)
    columns = list(dict.fromkeys(part for _, row in layers for part in row))
    rows = [{"name": f"layer {layer}", "cells": [row.get(part) for part in columns]} for layer, row in layers]
    for row in rows:
        row["sum"] = sum(cell["loss"] for cell in row["cells"] if cell)
    return {"columns": columns, "rows": rows, "others": list(table.get("", {}).values()), "caption": caption}
