"""Rounding weights to the grids of GGUF: plain rounding, scale search, error compensation, calibration, chain."""
