"""Statistics of evaluations: metrics, their intervals, paired tests and power. Pure."""
