"""Parses an answer's text into a pydantic model, keeping every digit of its numbers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.schema.conversions import STANDARD, read_model
from pipeline.schema.exact_numbers import Inexact
from pipeline.schema.shape import bare_json, load, unparsable, with_numbers_as_text

ABSENT: Final = object()
"""Stands for the JSON of a value that has no location in the answer."""


def read_answer(model: type[BaseModel], text: str) -> BaseModel:
    """The model instance for an answer. Raises `Unparsable`, with paths and reasons, for one that does not fit.

    Pydantic reads every JSON number as float64. Where that loses digits, integers and decimals are read from the
    digits, and other floats become `Inexact`: a float column then holds the nearest float64, and JSON text the literal.
    """
    text = bare_json(text)
    tree, inexact = load(text)
    try:
        if not inexact:
            return read_model(model, text, STANDARD)[0]
        value = _exact_value(model, text, inexact)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise unparsable((problem["loc"], problem["msg"]) for problem in found) from None
    return _DigitRestorer(inexact).kept_in_model(value, tree)


def input_name(name: str, info: FieldInfo) -> str:
    """The key of a field in JSON: its alias, or its own name."""
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        alias = alias.choices[0]
    if isinstance(alias, AliasPath):
        alias = str(alias.path[0])
    return alias or name


def _exact_value(model: type[BaseModel], text: str, inexact: list[Inexact]) -> BaseModel:
    """The value, read a second time with digits as text when an integer or a decimal was rounded."""
    try:
        value, text = read_model(model, text, STANDARD)
    except ValidationError:
        return _with_digits_as_text(model, text, inexact)
    exact = set(_exact_numbers(value))
    rounded = [number for number in inexact if number.is_integer() and int(number) in exact]
    rounded += [number for number in inexact if Decimal(repr(float(number))) in exact]
    return _with_digits_as_text(model, text, rounded) if rounded else value


def _with_digits_as_text(model: type[BaseModel], text: str, numbers: list[Inexact]) -> BaseModel:
    literals = {number.literal for number in numbers}
    return read_model(model, with_numbers_as_text(text, literals), STANDARD)[0]


def _exact_numbers(value: Any) -> Iterator[int | Decimal]:
    match value:
        case bool():
            return
        case int() | Decimal():
            yield value
        case BaseModel():
            yield from _exact_numbers([getattr(value, name) for name in type(value).model_fields])
        case Mapping():
            yield from _exact_numbers(list(value.values()))
        case list() | tuple() | set() | frozenset() | collections.deque():
            for item in value:
                yield from _exact_numbers(item)
        case _ if dataclasses.is_dataclass(value):
            yield from _exact_numbers([getattr(value, field.name) for field in dataclasses.fields(value)])


class _DigitRestorer:
    """Restores the digits of an answer's numbers in the floats that they became.

    A float gets the number at its own location in the answer. If a validator moved it, it gets the only number in the
    answer with that float value; if several have it, the float stays unchanged.
    """

    def __init__(self, inexact: Sequence[Inexact]) -> None:
        numbers: dict[float, set[str]] = {}
        for number in inexact:
            numbers.setdefault(float(number), set()).add(number.literal)
        self._by_value = {value: literals.pop() for value, literals in numbers.items() if len(literals) == 1}

    def kept_in_model(self, model: BaseModel, raw: Any) -> BaseModel:
        """The same model object, frozen or not, with its floats replaced."""
        if type(model).model_config.get("coerce_numbers_to_str"):  # the model wants the digits as text
            return model
        if isinstance(model, RootModel):
            model.__dict__["root"] = self._kept(model.root, raw)
            return model
        for name, info in type(model).model_fields.items():
            model.__dict__[name] = self._kept(getattr(model, name), _member(raw, input_name(name, info), name))
        for name, value in (model.model_extra or {}).items():
            model.model_extra[name] = self._kept(value, _member(raw, name))  # type: ignore[index] # there is one
        return model

    def _kept(self, value: Any, raw: Any) -> Any:
        match value:
            case float() | str():
                return self._number(value, raw)
            case BaseModel():
                return self.kept_in_model(value, raw)
            case dict():
                return dict(zip(value, self._each(list(value.values()), _values(value, raw)), strict=True))
            case list():
                return self._each(value, raw)
            case collections.deque():
                return collections.deque(self._each(list(value), raw), value.maxlen)
            case tuple():
                items = self._each(list(value), raw)
                return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
            case set() | frozenset():
                return type(value)(self._kept(item, ABSENT) for item in value)
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                for field in dataclasses.fields(value):
                    kept = self._kept(getattr(value, field.name), _member(raw, field.name))
                    object.__setattr__(value, field.name, kept)
        return value

    def _each(self, values: list[Any], raw: Any) -> list[Any]:
        places = raw if isinstance(raw, list) and len(raw) == len(values) else [ABSENT] * len(values)
        return [self._kept(value, place) for value, place in zip(values, places, strict=True)]

    def _number(self, value: float | str, raw: Any) -> float | str:
        if isinstance(value, str):  # from a number that was read as the text of its digits
            return raw if isinstance(raw, Inexact) and raw.literal == value else value
        if isinstance(raw, int | float):
            return raw if isinstance(raw, Inexact) and raw == value else value
        return Inexact.of(self._by_value[value]) if value in self._by_value else value


def _values(record: Mapping[Any, Any], raw: Any) -> list[Any]:
    """The JSON of a dict's values: by key, or by position if the keys are no longer text."""
    if not isinstance(raw, dict):
        return []
    if all(key in raw for key in record):
        return [raw[key] for key in record]
    return [] if any(isinstance(key, str) for key in record) else list(raw.values())


def _member(raw: Any, *names: str) -> Any:
    if not isinstance(raw, dict):
        return ABSENT
    return next((raw[name] for name in names if name in raw), ABSENT)
