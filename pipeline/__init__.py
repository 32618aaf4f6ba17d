"""Batch jobs on Gemini: rows in, typed Parquet out.

What a job file needs, and what runs a job from Python, is here; it is loaded when it is first named, so that importing
the package costs nothing. Type checkers read `__init__.pyi`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "AtLeast",
    "AtMost",
    "BudgetExhausted",
    "Eval",
    "EvalResult",
    "Halt",
    "InvalidRow",
    "Job",
    "NeverBreak",
    "NoWorse",
    "NothingToDo",
    "OutputInUse",
    "ProviderUnusable",
    "RowOutcome",
    "RunResult",
    "TooManyFailures",
    "UsageError",
    "audio",
    "evaluate",
    "image",
    "media",
    "run",
    "run_sync",
    "stream",
]

_HOMES = {
    **dict.fromkeys(("run", "run_sync", "stream"), "pipeline.execution.api"),
    **dict.fromkeys(("EvalResult", "evaluate"), "pipeline.report.eval_run"),
    "RunResult": "pipeline.execution.result",
    "RowOutcome": "pipeline.execution.outcome_channel",
    **dict.fromkeys(
        ("BudgetExhausted", "Halt", "NothingToDo", "OutputInUse", "ProviderUnusable", "TooManyFailures", "UsageError"),
        "pipeline.faults",
    ),
    "Job": "pipeline.job.job",
    "InvalidRow": "pipeline.faults",
    **dict.fromkeys(("audio", "image", "media"), "pipeline.job.attachments"),
    "Eval": "pipeline.evaluation.definition",
    **dict.fromkeys(("AtLeast", "AtMost", "NeverBreak", "NoWorse"), "pipeline.evaluation.gates"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
