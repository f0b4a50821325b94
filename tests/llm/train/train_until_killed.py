"""Train the model of test_loop.py in a process of its own; print the digest of the weights. Run by a test."""

import importlib.util
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
spec = importlib.util.spec_from_file_location("test_loop", Path(__file__).with_name("test_loop.py"))
test_loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test_loop)

logging.basicConfig(level=logging.INFO, format="%(message)s")
step_of = test_loop.LocalEngine.step


def step_and_tell(self, batch, scale):
    result = step_of(self, batch, scale)
    step_and_tell.count += 1
    print(f"did {step_and_tell.count} steps", file=sys.stderr, flush=True)
    return result


step_and_tell.count = 0
test_loop.LocalEngine.step = step_and_tell
config = test_loop.CONFIG.model_copy(update={"steps": 60})
model, _ = test_loop.run_training(Path(sys.argv[1]), config)
print(test_loop.digest(model))
