"""Packages that only evaluation needs: installed with the extra `eval`, imported when used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.faults import UsageError


@contextmanager
def needs_eval(purpose: str) -> Iterator[None]:
    """Wraps imports of scipy, numpy and rapidfuzz: raises UsageError, with the remedy, when one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{purpose} needs the extra `eval` ({error.name} is missing): pip install 'vertex-pipeline[eval]'"
        ) from error
