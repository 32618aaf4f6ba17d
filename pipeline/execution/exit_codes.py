"""Exit codes: one table, for runs that stopped and for exceptions."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pipeline.faults import (
    BudgetExhausted,
    NothingToDo,
    NotReady,
    OutputInUse,
    ProviderUnusable,
    TooManyFailures,
    UsageError,
)

if TYPE_CHECKING:
    from pipeline.execution.finish import Summary

CODES: tuple[tuple[type[BaseException], int], ...] = (
    (OutputInUse, 8),  # before its base class
    (UsageError, 2),
    (TooManyFailures, 3),
    (NothingToDo, 5),
    (BudgetExhausted, 6),
    (ProviderUnusable, 7),
    (NotReady, 75),  # EX_TEMPFAIL of sysexits.h, which schedulers know
)
"""The first matching class decides; anything else is 1. 4 is the code of a failed gate."""


def code_of(reason: object) -> int:
    """The exit code for an exception, or for the signal that stopped a run."""
    if isinstance(reason, signal.Signals):
        return 128 + reason.value
    return next((code for kind, code in CODES if isinstance(reason, kind)), 1)


def exit_code(summary: Summary, reason: object) -> int:
    """The exit code of a run, given why it stopped."""
    if summary.status != "stopped":
        return 3 if summary.status == "failed" else 0
    return code_of(reason)
