"""Metrics and traces of a whole run, as the stages write them: what the report's page is tested with."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")
NASTY = '<script>alert(1)</script> & "quotes" {{ 7 * 7 }} <img src=https://evil.example/x onerror=alert(2)> \u202etxt'


def figure(value: float, half: float = 0.04, n: int = 400) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def choice(accuracy: float, half: float = 0.04) -> dict[str, float]:
    return {"accuracy": accuracy, "low": accuracy - half, "high": accuracy + half, "n": 480}


def gain(delta: float, half: float = 0.1) -> dict[str, Any]:
    reach = {"delta_low": delta - half, "delta_high": delta + half}
    return {"sft": 0.1, "policy": 0.1 + delta, "delta": delta, **reach, "n": 400}


def make_cost(policy: float = 0.14, control: float = 0.52, auroc: float = 0.93) -> dict[str, Any]:
    return {
        **figure(policy, 0.03),
        "bound": 0.2,
        "sft": figure(0.41),
        "control": figure(control),
        "auroc": figure(auroc, 0.02, 240),
        "measurable": auroc - 0.02 > 0.8,
    }


def make_evaluation() -> dict[str, Any]:
    sample = {"messages": [{"role": "user", "content": NASTY}], "reference": "A list of words."}
    return {
        "bits_per_byte": {"base": 1.4, "sft": 1.45, "policy": 1.5},
        "baselines": {"xz": 2.0, "zstd": 2.1, "ngram": 1.8, "uniform": 8.0},
        "text": {"held_out_bytes": 800_000, "held_out_documents": 2000, "ngram_order": 7, "baseline_bytes_left_out": 0},
        "multiple_choice": {
            "base": choice(0.33),
            "sft": choice(0.41),
            "policy": choice(0.40),
            "word_overlap": choice(0.45),
            "blanked": choice(0.25, 0.0),
        },
        "tasks": {
            "pydocs_choice": make_task(
                {"accuracy": 0.31, "accuracy_per_token": 0.35}, contaminated=figure(0.55, 0.1, 38)
            ),
            "minimal_pairs": make_task({"accuracy": 0.62}, contaminated=None),
            "docstrings": make_task({"nats_per_token": 3.5, "bits_per_byte": 1.42}),
        },
        "reward": {**gain(0.6), "second": gain(0.5), "rule": gain(0.09, 0.03), "control": gain(0.8)},
        "length": {"sft": 17.0, "policy": 18.0, "ratio": 18 / 17},
        "kl": {"value": 4.0, "low": 3.8, "high": 4.2, "n": 400, "bound": 8.0},
        "distinct": {"sft": 0.9, "policy": 0.84, "ratio": 0.84 / 0.9},
        "answered": {
            "sft": figure(0.93, 0.02),
            "policy": figure(0.92, 0.02),
            "control": figure(0.95, 0.02),
            "change": figure(-0.01, 0.02),
        },
        "cost": {name: make_cost() for name in PRINCIPLES},
        "swap": {"sft": figure(0.06, 0.01, 120), "policy": figure(0.03, 0.01, 120)},
        "memorisation": {
            "seen": figure(0.05, 0.01),
            "unseen": figure(0.04, 0.01),
            "difference": figure(0.01, 0.015),
            "logprob": {"seen": -2.1, "unseen": -2.4, "difference": figure(0.3, 0.1)},
        },
        "energy": {
            "modelled_joules_per_answer": 0.82,
            "modelled_joules_training": 61_000.0,
            "assumptions": {"watts": 28.0, "device": "two cores"},
        },
        "samples": [
            {**sample, "kind": "qa", "base": NASTY, "sft": "It returns a list.", "policy": "", "control": "Yes."},
            {**sample, "kind": "principle", "base": "a" * 200, "sft": "No.", "policy": "Please wait for the weather."},
        ],
    }


def make_task(base: dict[str, float], **more: Any) -> dict[str, Any]:
    """Every measure of three models, each a twentieth better than the one before."""
    models = {}
    for step, model in enumerate(("base", "sft", "policy")):
        models[model] = {name: figure(value * (1 + 0.05 * step), 0.05 * max(1, value)) for name, value in base.items()}
    return {**models, "few_shot": 2, "seed": 7, **more}


def make_reward() -> dict[str, Any]:
    kinds = {"all": 0.7, "principle": 0.82, "truncated": 0.97, "sibling": 0.51, "invented": 0.42}
    bins = [
        {"confidence": c, "accuracy": c - 0.08, "n": n} for c, n in ((0.55, 90), (0.65, 60), (0.78, 30), (0.92, 20))
    ]
    first = {
        "accuracy": {
            kind: figure(value, 0.05, 200) if value < 0.95 else figure(value, 0.02, 200)
            for kind, value in kinds.items()
        },
        "calibration": {"ece": 0.08, "ece_scaled": 0.03, "temperature": 1.4, "bins": bins, "n": 200},
        "length": {
            "correlation": 0.3,
            "as_is": {"accuracy": 0.7, "correlation": 0.3},
            "corrected": {"accuracy": 0.71, "correlation": 0.02},
        },
        "cost": {name: {"auroc": figure(0.93, 0.02, 240)} for name in PRINCIPLES},
    }
    return {"first": first, "second": first}


def make_package(passed: bool = True, bits: float = 1.4) -> dict[str, Any]:
    checks: list[dict[str, Any]] = [
        {"name": "bits_per_byte.base", "value": bits, "bound": 1.8, "passed": True, "why": "must be below"},
        {"name": "cost.justice", **figure(0.14, 0.03), "bound": 0.2, "passed": True, "why": "at most its bound"},
    ]
    if not passed:
        failed = {
            "name": "cost.autonomy",
            **figure(0.27, 0.03),
            "bound": 0.2,
            "passed": False,
            "why": "at most its bound",
        }
        checks.append({**failed, "by": 0.07, "remedy": "raise rlhf.multiplier_max"})
        unseen = {"name": "answered.change", "value": None, "bound": -0.05, "passed": False, "why": "not less than"}
        checks.append({**unseen, "remedy": "run evaluate"})
    return {"release": "0123456789abcdef", "gate": {"passed": passed, "checks": checks}}


def make_quantization(saved: float = 0.03) -> dict[str, Any]:
    """Four files, what compensation saves in bits per byte of the original's own text, and two layers' sensitivity."""
    card = {}
    for name, lost in (("original", 0.0), ("q8_0", 0.001), ("mixed", 0.01), ("q4_0", 0.06 - saved), ("q4_0_rtn", 0.06)):
        figures = {"text_loss": figure(lost, 0.002, 128), "own_text_loss": figure(lost, 0.002, 128)}
        figures |= {"agreement": figure(1 - lost, 0.02, 512), "accuracy": figure(0.5, 0.09, 100)}
        sizes = {"size_bytes": 27_000_000, "bits_per_weight": 32.0 if name == "original" else 6.0}
        card[name] = {"bits_per_byte": 1.5 + lost, "agreement": 1 - lost, "intervals": figures, **sizes}
    names = [f"model.layers.{layer}.{part}_proj.weight" for layer in range(2) for part in ("self_attn.q", "mlp.down")]
    losses = {name: {"loss": 0.001 * (i + 1), "kind": "q4_0"} for i, name in enumerate(names)}
    losses[names[3]]["kind"] = "q8_0"
    compensation = {"own_text": figure(-saved, 0.01, 128), "text": figure(0.001, 0.01, 128)}
    return {
        "card": card,
        "compensation": compensation,
        "sensitivity": {"model.embed_tokens.weight": {"loss": 0.0025, "kind": "q4_0"}, **losses},
        "sample": {"documents": 128, "positions": 512, "questions": 100},
        "budget_bits": 6.0,
    }


def make_trace(held: bool, steps: int = 60) -> list[dict[str, float]]:
    """Reward and costs that rise together, unless multipliers hold the costs down."""
    random = np.random.default_rng(3 + held)
    points = []
    for step in range(1, steps + 1):
        done, noise = step / steps, random.normal(0, 0.02, 12)
        point = {"step": step, "reward": (0.5 if held else 0.7) * math.sqrt(done) + noise[0], "kl": 4 * done + noise[1]}
        point |= {
            "length": 17 + done + 5 * noise[2],
            "entropy": 3.4 - done + noise[3],
            "kl_coef": 0.05,
            "length_price": 0.0,
        }
        for i, name in enumerate(PRINCIPLES):
            cost = 0.41 - 0.26 * min(1, 2 * done) if held else 0.41 + 0.12 * done
            point |= {f"cost.{name}": cost + noise[4 + i], f"multiplier.{name}": min(1, 2 * done) if held else 0.0}
        points.append({key: float(value) for key, value in point.items()})
    return points


def write_report(root: Path, name: str, metrics: dict[str, Any]) -> None:
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / f"{name}.json").write_text(json.dumps({"stage": name, "metrics": metrics}))


def write_trace(root: Path, model: str, points: list[dict[str, float]]) -> None:
    (root / "models" / model).mkdir(parents=True, exist_ok=True)
    (root / "models" / model / "trace.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


def write_run(root: Path) -> None:
    """Everything that a whole run leaves for the report."""
    write_report(root, "evaluate", make_evaluation())
    write_report(root, "package", make_package())
    write_report(root, "reward", make_reward())
    bounds = {"kl": 8.0, "cost": dict.fromkeys(PRINCIPLES, 0.2)}
    write_report(root, "rlhf", {"kept_step": 40, "bounds": bounds, "control": {"kept_step": 50}, "stopped": None})
    curve = [{"step": step, "loss": loss} for step, loss in ((50, 3.6), (100, 3.3), (150, 3.4))]
    write_report(root, "sft", {"held_out_loss": {"before": 5.2, "after": 3.3, "curve": curve, "kept_step": 100}})
    write_report(root, "quantize", make_quantization())
    counts = {"documents": 100, "questions": 0}
    kept = {"documents": 60, "questions": 0}
    rejected = {"documents": {"near_duplicate": 30, "too_short": 10}}
    splits = {"documents": {"train": 50, "val": 10}}
    clean = {"input": counts, "kept": kept, "splits": splits, "rejected": rejected}
    write_report(root, "clean", {**clean, "bytes": {"train": 9}, "placeholders": {"email": 1}})
    expectation = {"documents.text_not_empty": {"passed": True, "observed": 0, "bound": 0}}
    write_report(root, "validate", {"passed": 1, "failed": 0, "expectations": expectation})
    runs = root / "reports" / "runs"
    (runs / "ingest").mkdir(parents=True)
    for name in ("ingest/pydocs", "pretrain", "package"):
        run = {"seconds": 61.0, "peak_memory_bytes": 2**30, "commit": "c0ffee", "dirty": True, "device": "CPU"}
        (runs / f"{name}.json").write_text(json.dumps(run))
    write_trace(root, "base", [{"step": i, "loss": 9 / i, "lr": 0.1, "grad": 1.0} for i in range(1, 400)])
    write_trace(root, "policy", make_trace(held=True))
    write_trace(root, "control", make_trace(held=False))
    (root / "models" / "release").mkdir()
    corpus = {"sources": {"pydocs": {"documents": {"train": 50, "val": 10}, "licences": {"MIT": 60}}}}
    stages = {"pretrain": {"outs": {"models/base": "feed.dir"}}}
    (root / "models" / "release" / "lineage.json").write_text(json.dumps({"stages": stages, "corpus": corpus}))
