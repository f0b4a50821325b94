"""Figures that pass the release gate, as evaluate and package report them."""

from typing import Any

PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")


def share(value: float, n: int = 100) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def change(delta: float) -> dict[str, float]:
    return {"sft": 0.1, "policy": 0.1 + delta, "delta": delta, "delta_low": delta - 0.1, "delta_high": 0.4, "n": 400}


def keeps(difference: float, agreement: float) -> dict[str, float]:
    return {"bits_per_byte": 1.9 * (1 + difference), "difference": difference, "agreement": agreement, "n": 400}


ALIGNMENT: dict[str, Any] = {
    "kl": {"value": 3.0, "low": 2.5, "high": 3.5, "n": 400, "bound": 8.0},
    "length": {"sft": 30.0, "policy": 33.0, "ratio": 1.1},
    "cost": {
        name: {
            **share(0.1),
            "bound": 0.2,
            "measurable": True,
            "kinds": ["principle"],
            "auroc": {"value": 0.9, "low": 0.85, "high": 0.95, "n": 60},
        }
        for name in PRINCIPLES
    },
    "answered": {"sft": share(0.9), "policy": share(0.89), "change": share(-0.01)},
    "distinct": {"sft": 0.9, "policy": 0.85, "ratio": 0.944},
}
EVALUATION: dict[str, Any] = {
    **ALIGNMENT,
    "max_new_tokens": 16,
    "bits_per_byte": {"base": 1.8, "policy": 1.9},
    "baselines": {"xz": 2.2, "zstd": 2.3, "ngram": 2.1, "uniform": 8.0},
    "multiple_choice": {
        name: {"accuracy": 0.4, "low": 0.35, "high": 0.45, "n": 400} for name in ("base", "sft", "policy")
    },
    "reward": {**change(0.2), "second": change(0.15), "rule": change(0.12)},
}
SERVED: dict[str, Any] = {
    **ALIGNMENT,
    "multiple_choice": {"accuracy": 0.4, "low": 0.34, "high": 0.46, "n": 400},
    "formats": {
        "hf": {"transformers": keeps(1e-6, 1.0)},
        "f16": {"openvino": keeps(1e-5, 1.0), "llamacpp": keeps(2e-4, 0.995)},
        "q8_0": {"openvino": keeps(0.001, 0.99), "llamacpp": keeps(-0.001, 0.98)},
        "q4_0": {"openvino": keeps(0.02, 0.9), "llamacpp": keeps(0.02, 0.9)},
    },
    "ids": {engine: {"value": 1.0, "n": 378} for engine in ("transformers", "openvino", "llamacpp")},
    "logit_gap": 1e-5,
    "reward": {"second": change(0.15)},
}
