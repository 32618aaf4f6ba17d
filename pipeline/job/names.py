"""Names of columns that a user wrote: what to say of those that the input does not have."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.faults import UsageError
from pipeline.text import nearest


def require_column(name: str, available: Sequence[str], who: str) -> None:
    """Raises `UsageError` for a column that the input does not have; `who` names it."""
    if name not in available:
        raise UsageError(f"{who} names the column {name!r}, which is not in the input{nearest(name, available)}")
