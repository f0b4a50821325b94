"""What a model is worth: bits per byte, tasks, alignment, the baselines beside them, and their intervals."""
