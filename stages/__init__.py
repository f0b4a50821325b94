"""One module per dvc stage; `plumbing` holds what every stage shares and no result depends on."""

import os

# Read by libgomp when torch is loaded, so it must be set before. A thread that waits must not burn the core that
# another needs: on two busy cores a training step was ten times slower while waiting threads were spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
