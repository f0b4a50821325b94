"""What a device can reach: bf16 matrix products, and bytes moved to and from its memory.

Both are the denominators of benchmarks/gpu.py, so they are maxima: the fastest call of the best shape or pattern. On
random data, because zeros run faster than anything real. Calls are timed by device events where there is a GPU.
    matrix     2 m n k / seconds of [m, k] x [k, n]
    bandwidth  (bytes read + bytes written) / seconds of a copy, and bytes read / seconds of a sum
Last line: JSON. `--device` (default: cuda where there is one) and `--seconds` (per shape or pattern).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Figure = dict[str, float]
# rows, inner, columns; the last is the up-projection of the 1b preset over 16 sequences
SHAPES = [(4096,) * 3, (8192,) * 3, (16_384,) * 3, (16_384, 8192, 16_384), (32_768, 2048, 16_384)]
CPU_SHAPES = [(256,) * 3, (512,) * 3]
BUFFER_BYTES, CPU_BUFFER_BYTES = 1 << 32, 1 << 26  # many times the last cache


def time_calls(call: Callable[[], object], device: torch.device, seconds: float, at_least: int = 5) -> list[float]:
    """Return the seconds of each call, for about `seconds` in all, after one call that is not counted."""
    call()
    durations: list[float] = []
    end = time.monotonic() + seconds
    while len(durations) < at_least or time.monotonic() < end:
        if device.type == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            stop.record()
            stop.synchronize()
            durations.append(start.elapsed_time(stop) / 1e3)
        else:
            started = time.perf_counter()
            call()
            durations.append(time.perf_counter() - started)
    return durations


def summarise(values: list[float]) -> Figure:
    """Return median, lowest and highest to four digits, and how many values there were."""
    figure = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {key: round_digits(value) for key, value in figure.items()} | {"n": len(values)}


def round_digits(value: float) -> float:
    """Return the value to four significant digits."""
    return float(f"{value:.4g}")


def measure_matrix(device: torch.device, seconds: float) -> dict[str, Figure]:
    """Return TFLOP/s of bf16 products by shape."""
    figures = {}
    for rows, inner, columns in SHAPES if device.type == "cuda" else CPU_SHAPES:
        left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        right = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
        out = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
        durations = time_calls(partial(torch.mm, left, right, out=out), device, seconds)
        figures[f"{rows}x{inner}x{columns}"] = summarise([2e-12 * rows * inner * columns / d for d in durations])
    return figures


def measure_bandwidth(device: torch.device, seconds: float) -> dict[str, Figure]:
    """Return GB/s (1e9 bytes) by pattern."""
    size_bytes = BUFFER_BYTES if device.type == "cuda" else CPU_BUFFER_BYTES
    source = torch.rand(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    copies = time_calls(lambda: target.copy_(source), device, seconds)
    sums = time_calls(source.sum, device, seconds)
    return {
        "copy": summarise([2e-9 * size_bytes / d for d in copies]),
        "read": summarise([1e-9 * size_bytes / d for d in sums]),
    }


def measure_ceilings(device: torch.device, seconds: float) -> dict[str, dict[str, Any]]:
    """Return both ceilings, each beside the figures that it is the highest of."""
    matrix, bandwidth = measure_matrix(device, seconds), measure_bandwidth(device, seconds)
    return {
        "matrix": {"tflops": max(figure["high"] for figure in matrix.values()), "by_shape": matrix},
        "bandwidth": {"gb_per_s": max(figure["high"] for figure in bandwidth.values()), "by_pattern": bandwidth},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    print(json.dumps(measure_ceilings(torch.device(arguments.device), arguments.seconds)))


if __name__ == "__main__":
    main()
