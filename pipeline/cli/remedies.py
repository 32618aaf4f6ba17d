"""What to do about a run that stopped, in the same words wherever it is reported."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.faults import Broken, BudgetExhausted, NotReady, TooManyFailures

_REMEDIES: Mapping[str, str] = {
    TooManyFailures.__name__: (
        "run it with `--retry-failed` to ask the failed rows again, with `--no-fail-fast` to ask the others"
    ),
    BudgetExhausted.__name__: "run the same command again with a larger budget to resume",
    NotReady.__name__: "run the same command again later to collect the answers",
    Broken.__name__: "put that right, then run the same command again to resume",
}


def remedy_for(stopped_by: str | None) -> str:
    """The next step after a stop by a signal or an error of this name, as manifests have it."""
    return _REMEDIES.get(stopped_by or "", "run the same command again to resume")
