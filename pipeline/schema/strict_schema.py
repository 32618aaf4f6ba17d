"""A pydantic model's JSON Schema, as narrow as the model: an answer that obeys it is accepted by the model.

Pydantic describes some of its types by its own formats (`uuid4`, `ipv4network`), which mean nothing to an endpoint, or
not at all (digits of a decimal, keys that are numbers). Here they become patterns. `pipeline.schema.conversions`
handles what no pattern can express.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pipeline.faults import UsageError
from pipeline.schema.dialects import any_of_tagged, listed_values
from pipeline.schema.shape import JsonSchema, mapped, resolve, subschemas

_HEX = "[0-9a-fA-F]"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}"
_GROUP = f"{_HEX}{{1,4}}"
_IPV6 = f"(({_GROUP}:){{7}}{_GROUP}|({_GROUP}:){{1,6}}:{_GROUP}|({_GROUP}:){{1,7}}:|::{_GROUP}|::)"
_BITS4, _BITS6 = "(3[0-2]|[12]?[0-9])", "(12[0-8]|1[01][0-9]|[1-9]?[0-9])"
_HOST = r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*(\.[A-Za-z][A-Za-z0-9]*)*(:[0-9]{1,4})?"
_SITE = rf"({_IPV4}|([A-Za-z0-9_-]+\.)*[A-Za-z][A-Za-z0-9-]*)(:[0-9]{{1,4}})?"  # no name ends in a number
_USER = r"([A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]*)?@)?"
_SYMBOLS = "A-Za-z0-9+/"
_BASE64 = f"^([{_SYMBOLS}]{{4}})*([{_SYMBOLS}][AQgw]==|[{_SYMBOLS}]{{2}}[AEIMQUYcgkosw048]=)?$"
_BASE64_URL = _BASE64.replace("+/", "_-")
_EMAIL = r"^[A-Za-z0-9]+([._+-][A-Za-z0-9]+)*@([A-Za-z0-9]+(-[A-Za-z0-9]+)*\.)+[A-Za-z]{2,}$"
_NETWORK4, _NETWORK6 = f"{_IPV4}/{_BITS4}", f"{_IPV6}/{_BITS6}"


def _uuid(version: int) -> dict[str, str]:
    pattern = f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}$"
    return {"format": "uuid", "pattern": pattern}


_FORMATS: Mapping[str, Mapping[str, Any]] = {
    "binary": {},
    "path": {},
    "base64": {"pattern": _BASE64},
    "base64url": {"pattern": _BASE64_URL},
    "email": {"format": "email", "pattern": _EMAIL},
    "name-email": {"pattern": _EMAIL},
    "ipvanyaddress": {"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]},
    "ipv4network": {"pattern": f"^{_NETWORK4}$"},
    "ipv4interface": {"pattern": f"^{_NETWORK4}$"},
    "ipv6network": {"pattern": f"^{_NETWORK6}$"},
    "ipv6interface": {"pattern": f"^{_NETWORK6}$"},
    "ipvanynetwork": {"pattern": f"^({_NETWORK4}|{_NETWORK6})$"},
    "ipvanyinterface": {"pattern": f"^({_NETWORK4}|{_NETWORK6})$"},
    **{f"uuid{version}": _uuid(version) for version in range(1, 9)},
}
"""Pydantic's own formats, as standard keywords."""

_BYTE_SIZE = r"^\s*(\d*\.?\d+)\s*(\w+)?"
_KEYS = {
    "integer": {"pattern": "^(0|-?[1-9][0-9]{0,17})$"},
    "number": {"pattern": r"^-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?$"},
    "boolean": {"enum": ["true", "false"]},
}


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema as structured outputs require it.

    Objects are closed and their properties required, except optional ones that are part of a cycle: Gemini accepts
    cyclic references only in properties that are not required. Defaults are omitted; a `$ref` has no siblings, or is
    replaced by its target. Free-form dicts stay open: see `pipeline.schema.shape.is_strict`. Raises `UsageError` for a
    type without a JSON schema.
    """
    try:
        model.model_rebuild()
        document = model.model_json_schema(schema_generator=_Narrow)
    except (PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError) as error:
        raise UsageError(f"{model.__name__} has no JSON schema: {str(error).splitlines()[0]}") from error
    return _strict(document, document, ())


class _Narrow(GenerateJsonSchema):
    """Pydantic's generator, extended by the constraints that it knows of but does not write."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """A number with the given decimal places, or the text of one if there are no bounds to compare."""
        described = super().decimal_schema(schema)
        number = described["anyOf"][0] if "anyOf" in described else described
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        if digits is not None and places is None:  # an integer, or the text of any number with at most `digits` digits
            number.setdefault("multipleOf", 1)
            forms = [_plain_decimal(digits - scale, scale) for scale in range(min(digits, 9) + 1)]
            whole = digits
        else:
            places = 9 if places is None else places
            number.setdefault("multipleOf", float(f"1e-{places}") if places else 1)
            whole = max((digits or 38) - places, 0)
            forms = [_plain_decimal(whole, places)]
        if digits is not None:
            if not {"maximum", "exclusiveMaximum"} & number.keys():
                number["exclusiveMaximum"] = 10**whole
            if not {"minimum", "exclusiveMinimum"} & number.keys():
                number["exclusiveMinimum"] = -(10**whole)
        text = {"type": "string", "pattern": f"^-?({'|'.join(forms)})$"}
        if {"gt", "ge", "lt", "le", "multiple_of"} & schema.keys():
            return number
        return text if not whole else {"anyOf": [number, text]}  # 0 counts as a digit, 0.0 does not

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        """Text in the encoding that the model's configuration expects."""
        described = super().bytes_schema(schema)
        match self._config.val_json_bytes:
            case "base64":
                described["format"] = "base64url"
            case "hex":
                described = {"type": "string", "pattern": "^([0-9a-f]{2})*$"}
            case _ if "maxLength" in described:  # in bytes
                described["pattern"] = "^[ -~]*$"
        return described

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        """Text; without surrounding whitespace if that is stripped before the length is checked."""
        described = super().str_schema(schema)
        if schema.get("strip_whitespace", self._config.str_strip_whitespace) and described.get("minLength"):
            described.setdefault("pattern", r"^\S([\s\S]*\S)?$")
        return described

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """A URI with an allowed scheme, and a host after the slashes."""
        schemes = schema.get("allowed_schemes")
        named = "[A-Za-z][A-Za-z0-9+.-]*"
        pattern = f"^({_any_of(schemes) if schemes else named})://{_USER}{_SITE}([/?#]|$)"
        if schemes == ["file"]:
            pattern = "^file:///[A-Za-z0-9]"
        elif not schemes:
            pattern += f"|^{named}:[A-Za-z]"
        return {**super().url_schema(schema), "pattern": pattern}

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        """A URL with an allowed scheme and one or more hosts."""
        described = super().multi_host_url_schema(schema)
        described.pop("format")
        schemes = schema.get("allowed_schemes")
        return {
            **described,
            "pattern": rf"^({_any_of(schemes) if schemes else '[a-z]+'})://{_USER}{_HOST}(,{_HOST})*(/[A-Za-z0-9_]*)?$",
        }

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """An object whose keys are texts that can be parsed as the type of the keys."""
        described = super().dict_schema(schema)
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        kind = keys["anyOf"][0].get("type") if "anyOf" in keys else keys.get("type")
        if kind in _KEYS and "enum" not in keys:
            described["propertyNames"] = _KEYS[kind]
        return described


def _any_of(schemes: list[str]) -> str:
    return "|".join(schemes).replace("+", r"\+")


def _plain_decimal(whole: int, places: int) -> str:
    after = rf"\.[0-9]{{1,{places}}}" if places else ""
    if not whole:
        return f"0{after}"
    return f"[0-9]{{1,{whole}}}({after})?" if places else f"[0-9]{{1,{whole}}}"


def _strict(schema: JsonSchema, root: JsonSchema, inlined: tuple[str, ...]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is not None and len(schema) > 1:
        siblings = {key: value for key, value in schema.items() if key != "$ref"}
        if reference in inlined:
            return _strict({"anyOf": [{"$ref": reference}], **siblings}, root, inlined)
        return _strict({**resolve(root, reference), **siblings}, root, (*inlined, reference))
    closed = _in_common_words(mapped(schema, lambda inner: _strict(inner, root, inlined)))
    closed.pop("default", None)
    if "properties" in closed:
        needed = schema.get("required", ())
        closed["required"] = [
            name for name, inner in schema["properties"].items() if name in needed or not _leads_back(inner, root)
        ]
    if closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _in_common_words(schema: dict[str, Any]) -> dict[str, Any]:
    common = listed_values(any_of_tagged(schema))
    if common.get("format") in _FORMATS:
        own = _FORMATS[common.pop("format")]
        if "anyOf" in own:
            common.pop("type", None)
        common = {**own, **common}
    if common.get("pattern") == _BYTE_SIZE:
        common["pattern"] = "^[0-9]{1,6} ?([kMGT]i?)?B$"
    return common


def _leads_back(schema: JsonSchema, root: JsonSchema) -> bool:
    """Whether a reference in the schema has a target that refers to itself."""
    return any(reference in _references(resolve(root, reference), root) for reference in _direct(schema))


def _direct(schema: JsonSchema) -> Iterator[str]:
    if "$ref" in schema:
        yield schema["$ref"]
    for inner in subschemas(schema):
        yield from _direct(inner)


def _references(schema: JsonSchema, root: JsonSchema) -> set[str]:
    """All references that can be reached from the schema."""
    found: set[str] = set()
    ahead = list(_direct(schema))
    while ahead:
        reference = ahead.pop()
        if reference not in found:
            found.add(reference)
            ahead += _direct(resolve(root, reference))
    return found
