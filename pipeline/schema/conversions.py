"""Converts values that are valid by the requested schema but rejected by pydantic, and validates again.

A model's JSON Schema is wider than the model in a few places, because the standard cannot express the difference.
Each conversion applies to one type of pydantic error (https://docs.pydantic.dev/latest/errors/validation_errors/), so
that valid values are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.faults import Unparsable
from pipeline.schema.exact_numbers import json_of
from pipeline.schema.shape import load

Conversion = Callable[[Any], Any]
"""From the rejected value to the one to use instead. Raises ValueError or TypeError when there is none."""

ROUNDS = 8
"""How deeply converted values may be nested in one another."""

_Model = TypeVar("_Model", bound=BaseModel)
_OFFSET = re.compile(r"([Zz]|[+-]\d\d:?\d\d)$")
_LEAP = re.compile(r"(?<=\d\d:\d\d:)60")


def _without_offset(value: Any) -> str:
    return _OFFSET.sub("", value)


def without_leap_second(value: str) -> str:
    """A time with second 60 (RFC 3339, section 5.7), which Python does not support, as the second before."""
    return _LEAP.sub("59", value)


def _whole(value: Any) -> int:
    if not isinstance(value, float) or not value.is_integer():
        raise TypeError("not a whole number")
    return int(value)


def _network(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a network's text")
    return str(ip_network(value, strict=False))


def _from_entries(value: Any) -> dict[str, Any]:
    """An object from a list of its entries, which `pipeline.schema.tool_parameters` requests for free-form objects."""
    if not isinstance(value, list):
        raise TypeError("not a list of entries")
    record = {}
    for entry in value:
        if not isinstance(entry, dict) or entry.keys() != {"key", "value"} or entry["key"] in record:
            raise ValueError("not an entry, or one for the second time")
        record[entry["key"]] = entry["value"]
    return record


STANDARD: Mapping[str, Conversion] = {
    "timezone_naive": _without_offset,  # the format `date-time` has an offset; a `NaiveDatetime` is the time as written
    "time_parsing": without_leap_second,
    "datetime_parsing": without_leap_second,
    "datetime_from_date_parsing": without_leap_second,
    "int_type": _whole,  # JSON Schema's integers include 3.0; pydantic's strict ones do not
    "ip_v4_network": _network,  # bits beyond the prefix are dropped, as routers do
    "ip_v6_network": _network,
    "ip_any_network": _network,
}
"""For answers: values that are valid by the standard."""

ENTRIES: Mapping[str, Conversion] = {
    **STANDARD,
    "dict_type": _from_entries,
    "mapping_type": _from_entries,
    "model_type": _from_entries,
    "model_attributes_type": _from_entries,
    "dataclass_type": _from_entries,
}
"""For tool arguments, where a free-form object is requested as a list of entries."""


def read_model(model: type[_Model], text: str, conversions: Mapping[str, Conversion]) -> tuple[_Model, str]:
    """The model for a JSON text, converted where needed, and the text that it was read from.

    Raises pydantic's ValidationError when no conversion helps.
    """
    for _ in range(ROUNDS):
        try:
            return model.model_validate_json(text), text
        except ValidationError as error:
            changed = _converted(text, error, conversions)
            if changed is None:
                raise
            text = changed
    return model.model_validate_json(text), text


def _converted(text: str, error: ValidationError, conversions: Mapping[str, Conversion]) -> str | None:
    """The text with every rejected value replaced that has a conversion; None when none has."""
    known = [item for item in error.errors(include_url=False, include_context=False) if item["type"] in conversions]
    if not known:
        return None
    try:
        tree, _ = load(text)
    except Unparsable:
        return None
    changed = False
    for item in known:
        try:
            value = conversions[item["type"]](item["input"])
        except (ValueError, TypeError):
            continue
        changed |= (type(value), value) != (type(item["input"]), item["input"]) and _replaced(
            tree, item["loc"], item["input"], value
        )
    return json_of(tree) if changed else None


def _replaced(tree: Any, path: Sequence[int | str], old: Any, new: Any) -> bool:
    """Replaces `old` on the path; returns whether it was found.

    A path also contains the names of union members, which are not locations, so any of its steps may be skipped. Each
    node is examined once for each remaining length of the path.
    """
    ahead = [(tree, 0)]
    seen = set()
    while ahead:
        node, at = ahead.pop()
        if at == len(path) or (id(node), at) in seen:
            continue
        seen.add((id(node), at))
        ahead.append((node, at + 1))
        step = path[at]
        inside = step in node if isinstance(node, dict) else isinstance(node, list) and step in range(len(node))
        if inside:
            if type(node[step]) is type(old) and node[step] == old:
                node[step] = new
                return True
            ahead.append((node[step], at + 1))
    return False
