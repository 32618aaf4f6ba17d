"""Arithmetic of time: a clock value goes in, a decision comes out. Nothing here waits, sends or reads a clock."""

from pipeline.pace.declared import LATE_S, Spacing, TokenEstimate
from pipeline.pace.gate import PROBE_S, SILENCE_AMONG_S, SILENCE_S, Breaker, Gate
from pipeline.pace.lateness import Call, Lateness
from pipeline.pace.rate import AdaptiveRate, Change
from pipeline.pace.slow_start import FIRST_RATE, first_rate
from pipeline.pace.weather import Latencies, RetryBudget, Weather

__all__ = [
    "FIRST_RATE",
    "LATE_S",
    "PROBE_S",
    "SILENCE_AMONG_S",
    "SILENCE_S",
    "AdaptiveRate",
    "Breaker",
    "Call",
    "Change",
    "Gate",
    "Latencies",
    "Lateness",
    "RetryBudget",
    "Spacing",
    "TokenEstimate",
    "Weather",
    "first_rate",
]
