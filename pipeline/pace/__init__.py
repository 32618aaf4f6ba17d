"""Arithmetic of time: a clock value goes in, a decision comes out. Nothing here waits, sends or reads a clock."""

from pipeline.pace.blame import FEW, Blame, Refusal
from pipeline.pace.declared import LATE_S, Spacing, TokenEstimate
from pipeline.pace.gate import PROBE_S, ROWS, SILENCE_AMONG_S, SILENCE_S, Breaker, Gate
from pipeline.pace.lateness import Call, Lateness
from pipeline.pace.rate import AdaptiveRate, Change
from pipeline.pace.slow_start import FIRST_RATE, first_rate
from pipeline.pace.weather import Latencies, RetryBudget, Weather

__all__ = [
    "FEW",
    "FIRST_RATE",
    "LATE_S",
    "PROBE_S",
    "ROWS",
    "SILENCE_AMONG_S",
    "SILENCE_S",
    "AdaptiveRate",
    "Blame",
    "Breaker",
    "Call",
    "Change",
    "Gate",
    "Latencies",
    "Lateness",
    "Refusal",
    "RetryBudget",
    "Spacing",
    "TokenEstimate",
    "Weather",
    "first_rate",
]
