"""Evaluation as values and pure folds: answers are graded leaf by leaf, rows scored, runs compared, gates decided.

The graders that an evaluation names are here; each is loaded when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.grade.functions import Function as Function
    from pipeline.grade.graders import Ignore as Ignore
    from pipeline.grade.judge import Judge as Judge
    from pipeline.grade.lists import Items as Items
    from pipeline.grade.lists import Ordered as Ordered
    from pipeline.grade.lists import Set as Set
    from pipeline.grade.moments import Date as Date
    from pipeline.grade.moments import Time as Time
    from pipeline.grade.objects import Object as Object
    from pipeline.grade.scalars import Bool as Bool
    from pipeline.grade.scalars import Enum as Enum
    from pipeline.grade.scalars import Exact as Exact
    from pipeline.grade.scalars import Number as Number
    from pipeline.grade.scalars import Regex as Regex
    from pipeline.grade.scalars import Text as Text

_HOMES = {
    **dict.fromkeys(("Exact", "Text", "Regex", "Enum", "Bool", "Number"), "scalars"),
    **dict.fromkeys(("Date", "Time"), "moments"),
    **dict.fromkeys(("Set", "Ordered", "Items"), "lists"),
    "Object": "objects",
    "Ignore": "graders",
    "Function": "functions",
    "Judge": "judge",
}
__all__ = [
    "Bool",
    "Date",
    "Enum",
    "Exact",
    "Function",
    "Ignore",
    "Items",
    "Judge",
    "Number",
    "Object",
    "Ordered",
    "Regex",
    "Set",
    "Text",
    "Time",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline.grade' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.grade.{_HOMES[name]}"), name)
