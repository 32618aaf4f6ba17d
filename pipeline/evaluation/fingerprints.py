"""Graders as comparable text, to decide whether two runs were graded the same way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.evaluation.graders.rows import Graders
from pipeline.job.function_text import text_of
from pipeline.text import short_hash


def fingerprints(graders: Graders) -> dict[str, str]:
    """Canonical JSON of every field's grader, by field name: equal when the field is graded the same way.

    A function is identified by its name and source; the functions it calls are not examined.
    """
    return {name: _canonical(_described(grader)) for name, grader in graders.fields.items()}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _described(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        own = {field.name: _described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"grader": type(value).__name__, **own}
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _described(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_described(inner) for inner in value]
        case set() | frozenset():
            return sorted(map(_canonical, map(_described, value)))
        case _ if callable(value):
            return {"function": getattr(value, "__qualname__", type(value).__qualname__), "source": _source(value)}
        case _:
            return str(value)


def _source(function: Callable[..., Any]) -> str:
    """The digest of the source, or of the compiled code where the source is not available."""
    return short_hash(text_of(function))
