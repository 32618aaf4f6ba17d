"""Evaluation as values and pure folds: answers are graded leaf by leaf, rows scored, runs compared, gates decided.

The graders that an evaluation names are here; each is loaded when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.evaluation.graders.base import Ignore as Ignore
    from pipeline.evaluation.graders.dates import Date as Date
    from pipeline.evaluation.graders.dates import Time as Time
    from pipeline.evaluation.graders.functions import Function as Function
    from pipeline.evaluation.graders.judge import Judge as Judge
    from pipeline.evaluation.graders.lists import Items as Items
    from pipeline.evaluation.graders.lists import Ordered as Ordered
    from pipeline.evaluation.graders.lists import Set as Set
    from pipeline.evaluation.graders.objects import Object as Object
    from pipeline.evaluation.graders.scalars import Bool as Bool
    from pipeline.evaluation.graders.scalars import Enum as Enum
    from pipeline.evaluation.graders.scalars import Exact as Exact
    from pipeline.evaluation.graders.scalars import Number as Number
    from pipeline.evaluation.graders.scalars import Regex as Regex
    from pipeline.evaluation.graders.scalars import Text as Text

_HOMES = {
    **dict.fromkeys(("Exact", "Text", "Regex", "Enum", "Bool", "Number"), "scalars"),
    **dict.fromkeys(("Date", "Time"), "dates"),
    **dict.fromkeys(("Set", "Ordered", "Items"), "lists"),
    "Object": "objects",
    "Ignore": "base",
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
        raise AttributeError(f"module 'pipeline.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.evaluation.graders.{_HOMES[name]}"), name)
