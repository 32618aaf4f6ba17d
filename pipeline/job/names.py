"""Names that a user wrote and that are not known: what to say of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pipeline.faults import UsageError


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"


def require_column(name: str, available: Sequence[str], who: str) -> None:
    """Raises `UsageError` for a column that the input does not have; `who` names it."""
    if name not in available:
        raise UsageError(f"{who} names the column {name!r}, which is not in the input{nearest(name, available)}")
