"""The report of a benchmark on one device: saved after every figure, so that a run that is cut off loses nothing."""

import datetime
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch


class Report:
    """`content`: machine, date, and figures by section and name.  `failed`: names whose check did not pass."""

    def __init__(self, folder: Path, device: torch.device):
        machine = describe_machine(device)
        self.path = folder / f"{re.sub('[^A-Za-z0-9]+', '-', machine['device'])}.json"
        self.content: dict[str, Any] = {"machine": machine}
        self.failed: list[str] = []
        if self.path.is_file():
            earlier = json.loads(self.path.read_text())
            if earlier["machine"] == machine:
                self.content = earlier
            else:
                print(f"{self.path} is of {earlier['machine']}: its figures are dropped", flush=True)

    def put(self, section: str, name: str, figures: dict[str, Any]) -> None:
        """Save figures under section and name, in place of earlier ones."""
        if not figures.get("check", {}).get("passed", True):
            self.failed.append(f"{section} {name}")
        self.content["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.content.setdefault(section, {})[name] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(partial, self.path)
        print(f"{section} {name}: {json.dumps(figures)}", flush=True)


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return names and versions that figures depend on."""
    if device.type != "cuda":
        return {"device": device.type, "driver": "none", "torch": torch.__version__, "cuda": "none"}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": driver,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }
