"""`--drain-timeout`: how long calls in flight may take after a signal, by the platform that sends it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from pipeline.faults import UsageError

AUTO = "auto"

USUAL_S = 20.0
CLOUD_RUN_S = 6.0
"""Cloud Run kills a task 10 s after SIGTERM: the rest is for the last segment of the journal."""
KUBERNETES_S = 25.0
"""Kubernetes kills a pod 30 s after SIGTERM, unless its terminationGracePeriodSeconds is another."""


def drain_timeout(text: str) -> float:
    """The seconds that an option names; `auto` is what the platform allows. Raises `UsageError`."""
    if text == AUTO:
        return platform_s()
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"--drain-timeout takes seconds from 0 on, or auto, not {text!r}")
    return seconds


def platform_s(environment: Mapping[str, str] = os.environ) -> float:
    """The seconds that the platform leaves for calls in flight, by the variables that it sets."""
    if "CLOUD_RUN_JOB" in environment or "K_SERVICE" in environment:
        return CLOUD_RUN_S
    return KUBERNETES_S if "KUBERNETES_SERVICE_HOST" in environment else USUAL_S
