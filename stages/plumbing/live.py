"""Learning curves while a stage runs: TensorBoard always, Weights & Biases when WANDB_API_KEY is set.

Both are views: what fails here is one warning and never a lost run. A resumed run goes on in its own folder,
runs/<stage>/<key>, where the key is that of its params and inputs.
"""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("gristmill")
FOLDER = Path("runs")
Point = Mapping[str, float]


class Live:
    """Takes the points of one learning curve; opens its views with the first."""

    def __init__(self, stage: str, key: str, part: str):
        self.stage, self.name = stage, "/".join(filter(None, (stage, key, part)))
        self.views: list[Callable[[int, Point], Any]] | None = None

    def __call__(self, point: Point) -> None:
        values = {name: value for name, value in point.items() if name != "step"}
        try:
            if self.views is None:
                self.views = [open_tensorboard(self.name)]
                if os.environ.get("WANDB_API_KEY"):
                    self.views.append(open_wandb(self.name, self.stage))
            for view in self.views:
                view(int(point["step"]), values)
        except Exception as error:  # noqa: BLE001 - a view is never worth a lost run; it says what failed
            log.warning("%s: learning curve not shown live: %s: %s", self.stage, type(error).__name__, error)
            self.views = []


def open_tensorboard(name: str) -> Callable[[int, Point], Any]:
    """Return a writer of event files that `tensorboard --logdir runs` shows."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(FOLDER / name), flush_secs=5)

    def write(step: int, values: Point) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return write


def open_wandb(name: str, stage: str) -> Callable[[int, Point], Any]:
    """Return a writer to a run of the project `gristmill`; a resumed run goes on with the same id."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("WANDB_API_KEY is set but wandb is not installed: pip install wandb") from error
    run = wandb.init(project="gristmill", group=stage, name=name, id=name.replace("/", "-"), resume="allow")
    return lambda step, values: run.log(dict(values), step=step)
