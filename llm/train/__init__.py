"""One training loop: optimisers, schedule, checkpoints, launchers."""
