"""What an endpoint may send for the schema that it was asked for, and pydantic refuses: converted, and read once more.

A model's JSON Schema is wider than the model in a few places, because the standard has no word for the difference.
Each conversion belongs to one kind of pydantic's errors (https://docs.pydantic.dev/latest/errors/validation_errors/),
so that nothing that is valid already is touched.
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
"""From the value that was refused to the one to read in its place. ValueError or TypeError when there is none."""

ROUNDS = 8
"""How deep converted values may lie in one another."""

_Model = TypeVar("_Model", bound=BaseModel)
_OFFSET = re.compile(r"([Zz]|[+-]\d\d:?\d\d)$")
_LEAP = re.compile(r"(?<=\d\d:\d\d:)60")


def _without_offset(value: Any) -> str:
    return _OFFSET.sub("", value)


def without_leap_second(value: str) -> str:
    """A time's second 60 (RFC 3339, section 5.7), which Python's clocks do not have, as the second before."""
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
    """An object out of a list of its entries, as `pipeline.schema.tool_parameters` asks for free-form ones."""
    if not isinstance(value, list):
        raise TypeError("not a list of entries")
    record = {}
    for entry in value:
        if not isinstance(entry, dict) or entry.keys() != {"key", "value"} or entry["key"] in record:
            raise ValueError("not an entry, or one for the second time")
        record[entry["key"]] = entry["value"]
    return record


STANDARD: Mapping[str, Conversion] = {
    "timezone_naive": _without_offset,  # the format `date-time` has an offset; a `NaiveDatetime` is as it is written
    "time_parsing": without_leap_second,
    "datetime_parsing": without_leap_second,
    "datetime_from_date_parsing": without_leap_second,
    "int_type": _whole,  # JSON Schema's integers include 3.0; pydantic's strict ones do not
    "ip_v4_network": _network,  # bits beyond the prefix are dropped, as routers do
    "ip_v6_network": _network,
    "ip_any_network": _network,
}
"""For answers: what is valid by the standard that the schema names."""

ENTRIES: Mapping[str, Conversion] = {
    **STANDARD,
    "dict_type": _from_entries,
    "mapping_type": _from_entries,
    "model_type": _from_entries,
    "model_attributes_type": _from_entries,
    "dataclass_type": _from_entries,
}
"""For the arguments of tools, where an object of any names is asked for as a list of entries."""


def read_model(model: type[_Model], text: str, conversions: Mapping[str, Conversion]) -> tuple[_Model, str]:
    """The model of a JSON text, converted where needed, and the text that it was read from.

    Raises pydantic's ValidationError for what no conversion helps.
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
    """The text with every refused value replaced that has a conversion; None when there is none."""
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
    """Whether `old` was found on the path, and replaced.

    A path also names members of unions, which are no places, so any of its steps may be passed over. Each node is
    looked at once for each length of the rest.
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
