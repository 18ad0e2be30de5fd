"""Calibration: which groups go, and what makes up for them, from a few hundred samples; no labels and no training."""
