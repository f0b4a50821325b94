"""What benchmarks share and no one runs alone."""
