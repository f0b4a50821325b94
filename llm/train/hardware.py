"""What the planner knows of machines: data sheets for GPUs, measurement for the machine at hand.

Peaks are dense bf16 with fp32 sums, memory and rates as the makers print them (decimal, one direction). `share` is
what training steps reach of the peak before they wait for other GPUs: an assumption, chosen so that published runs
come out (tests/llm/train/test_plan.py); measure yours with benchmarks/gpu.py where you can.
"""

import os
from typing import NamedTuple

import torch

from llm.model.flops import measure_ceiling


class Device(NamedTuple):
    """One GPU and its way to the others. Rates are per GPU and second, sizes in bytes."""

    name: str
    memory: float
    flops: float
    bandwidth: float  # of its own memory
    link: float  # to the others of its node
    network: float  # to other nodes
    per_node: int
    share: float
    source: str


GB, TB = 1e9, 1e12
_HOPPER = "NVIDIA {} data sheet (SXM); NVLink 900 GB/s both ways; 400 Gb/s a GPU (DGX {})"
_DEVICES = (
    Device("a100-40", 40 * GB, 312e12, 1.555 * TB, 300 * GB, 25 * GB, 8, 0.50, "NVIDIA A100 data sheet, DGX A100"),
    Device("a100-80", 80 * GB, 312e12, 2.039 * TB, 300 * GB, 25 * GB, 8, 0.50, "NVIDIA A100 data sheet, DGX A100"),
    Device("h100", 80 * GB, 989e12, 3.35 * TB, 450 * GB, 50 * GB, 8, 0.45, _HOPPER.format("H100", "H100")),
    Device("h200", 141 * GB, 989e12, 4.8 * TB, 450 * GB, 50 * GB, 8, 0.45, _HOPPER.format("H200", "H200")),
    Device(
        "b200", 180 * GB, 2250e12, 8 * TB, 900 * GB, 50 * GB, 8, 0.40,
        "NVIDIA DGX B200 data sheet; 1,440 GB and 36 PFLOP/s sparse fp16 for eight; share assumed",
    ),
    Device(
        "l4", 24 * GB, 121e12, 0.3 * TB, 32 * GB, 12.5 * GB, 8, 0.45,
        "NVIDIA L4 data sheet; PCIe 4 x16; 100 Gb/s a GPU and share assumed",
    ),
    Device(
        "4090", 24 * GB, 165e12, 1.008 * TB, 16 * GB, 12.5 * GB, 8, 0.50,
        "NVIDIA Ada white paper, appendix A; PCIe 4 x16 without peer to peer; network and share assumed",
    ),
)  # fmt: skip
DEVICES = {device.name: device for device in _DEVICES}


def measure_cpu() -> Device:
    """Return the machine at hand: its memory, and the rates that products and copies reach with torch's threads now.

    Its `share` is 1: step times are measured on slices of the model (llm/train/probe.py), not derived from the peak.
    """
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    source = f"measured with {torch.get_num_threads()} threads"
    return Device("cpu", memory, measure_ceiling(torch.bfloat16), 0.0, 0.0, 0.0, 1, 1.0, source)
