"""Statistics of evaluations: intervals, paired tests, power and the figures they are about. Pure."""
