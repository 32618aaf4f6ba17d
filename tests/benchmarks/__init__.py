"""Benchmarks that anyone can run: `make bench`. Figures are ratios to baselines of the same round."""
