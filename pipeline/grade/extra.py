"""The packages of the extra `eval`, asked for in one place."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from pipeline.faults import Misuse


@cache
def require_eval() -> None:
    """Raises `Misuse` unless numpy, scipy and rapidfuzz can be imported; none of them is loaded by asking."""
    missing = [name for name in ("numpy", "scipy", "rapidfuzz") if find_spec(name) is None]
    if missing:
        raise Misuse(
            f"evaluations need {', '.join(missing)}: install the extra `eval` (pip install 'vertex-pipeline[eval]')"
        )
