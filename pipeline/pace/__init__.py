"""Timing decisions as pure functions of a clock value. Nothing here waits, sends or reads a clock."""

from pipeline.pace.attribution import FEW, Blame, Refusal
from pipeline.pace.circuit_breaker import PROBE_S, ROWS, SILENCE_AMONG_S, SILENCE_S, CircuitBreaker, RetryAfterHold
from pipeline.pace.declared_limits import LATE_S, Pacer, TokenEstimate
from pipeline.pace.failure_rate import FailureRate, LatencyWindow, RetryBudget
from pipeline.pace.rate import AdaptiveRate
from pipeline.pace.rate_state import RateChange
from pipeline.pace.recent_rate import RecentRate
from pipeline.pace.slow_start import FIRST_RATE, first_rate
from pipeline.pace.stragglers import StragglerDetector, TimedCall
from pipeline.pace.throttle_episode import QUIET_S, ThrottleEpisode

__all__ = [
    "FEW",
    "FIRST_RATE",
    "LATE_S",
    "PROBE_S",
    "QUIET_S",
    "ROWS",
    "SILENCE_AMONG_S",
    "SILENCE_S",
    "AdaptiveRate",
    "Blame",
    "CircuitBreaker",
    "FailureRate",
    "LatencyWindow",
    "Pacer",
    "RateChange",
    "RecentRate",
    "Refusal",
    "RetryAfterHold",
    "RetryBudget",
    "StragglerDetector",
    "ThrottleEpisode",
    "TimedCall",
    "TokenEstimate",
    "first_rate",
]
