"""What this machine has and lacks: `make verify`."""

import os
import platform
import shutil

import torch

from llm.model.flops import measure_ceiling

NEEDED = {
    "g++": ("g++", "DeepSpeed's communication op: tests/llm/train/test_ray_launcher.py"),
    "chromium": ("chromium", "the browser tests of tests/llm/serve"),
    "chromedriver": ("chromium-driver", "the browser tests of tests/llm/serve"),
}


def main() -> None:
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores")
    rates = {name: measure_ceiling(dtype) / 1e9 for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    print("matrix products: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    if rates["bf16"] < rates["fp32"]:
        print("bf16 is slower than fp32 here: set base.dtype: fp32 in params.yaml")
    print(f"GPU: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    for program, (package, use) in NEEDED.items():
        found = shutil.which(program)
        print(f"{program}: {found or f'missing (Debian: apt-get install {package}); skipped without it: {use}'}")


if __name__ == "__main__":
    main()
