"""Results of an evaluation as plain JSON values: what `--json` and `summary.json` hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pipeline.evaluation.stats.metrics import Measure


def jsonable(value: Any) -> Any:
    """A result as values that strict JSON can hold: floats rounded, and null where they are not finite."""
    match value:
        case Measure(value=figure, low=low, high=high, n=n, why=why):
            shown = {"value": rounded(figure), "low": rounded(low), "high": rounded(high), "n": n}
            return {**shown, "why": why} if why else shown
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {one.name: jsonable(getattr(value, one.name)) for one in fields(value)}
        case float():
            return rounded(value)
        case Mapping():
            return {str(name): jsonable(inner) for name, inner in value.items()}
        case list() | tuple() if hasattr(value, "_asdict"):
            return jsonable(value._asdict())
        case list() | tuple():
            return [jsonable(inner) for inner in value]
        case _:
            return value


def rounded(value: float | None) -> float | None:
    """A number to six decimal places; None if it is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, 6)
