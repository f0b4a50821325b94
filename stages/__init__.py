"""One module per dvc stage; `plumbing` holds what every stage shares and no result depends on."""

import os
import time
from pathlib import Path

IDLE_ENOUGH = 0.8


def _measure_idle(seconds: float = 0.15) -> float:
    """Return the share of all processors' time that was idle just now; 0 where the system does not say."""

    def read() -> tuple[int, int]:
        ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)  # idle and waiting for a disk; steal counts as busy

    try:
        idle, total = read()
        time.sleep(seconds)
        idle_then, total_then = read()
    except (OSError, ValueError, IndexError):
        return 0.0
    return (idle_then - idle) / max(1, total_then - total)


# Read by libgomp when torch is loaded, so it must be set before. A waiting thread that sleeps wakes up late: a
# training step took 1.5 times as long on an idle machine. One that spins burns the core that another needs: two
# to ten times as long on a busy one. So: spin for a moment where the processors are idle, else sleep.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    if _measure_idle() >= IDLE_ENOUGH:
        os.environ["GOMP_SPINCOUNT"] = "100000"
    else:
        os.environ["OMP_WAIT_POLICY"] = "passive"
