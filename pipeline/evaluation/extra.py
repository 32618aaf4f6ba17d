"""What only evaluation needs is installed with the extra `eval`, and loaded when it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.faults import UsageError


@contextmanager
def needs_eval(purpose: str) -> Iterator[None]:
    """Around imports of scipy, numpy and rapidfuzz: UsageError, with the remedy, when they are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{purpose} needs the extra `eval` ({error.name} is missing): pip install 'vertex-pipeline[eval]'"
        ) from error
