"""Measurements of compute and learning, side by side in one run: `python -m benchmarks`."""
