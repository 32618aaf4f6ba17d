"""Evaluation as values and pure folds: answers are graded leaf by leaf, rows scored, runs compared, gates decided."""
