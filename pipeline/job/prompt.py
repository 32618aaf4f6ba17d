"""Prompts: Jinja2 templates over a row's columns, sandboxed, strict, rendered exactly once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.data import RowValues
from pipeline.endpoint.redaction import said_of_row
from pipeline.faults import InvalidRow, UsageError
from pipeline.text import closest

WHOLE_ROW = "row"
"""In a template, `row` is the whole row, for columns whose names are not identifiers: `row["invoice no"]`."""


FUNCTIONS = frozenset(DEFAULT_NAMESPACE)
"""Names of Jinja functions (such as `range`), which a column of the same name overrides."""

_TAKE_NULL = ("default", "d", "tojson")


class NullValueError(TemplateError):
    """A null reached the prompt, where it would have been rendered as the word None."""


def _reject_null(value: object) -> object:
    if value is None:
        raise NullValueError
    return value


def _fence(value: object) -> str:
    """`value` between two delimiters that do not occur in it, to mark data that must not be read as instructions."""
    text = str(value)
    mark = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    return f"<data {mark}>\n{text}\n</data {mark}>"


def _tojson(value: object, indent: int | None = None) -> str:
    """Plain JSON: Jinja's own filter escapes `<` and `&` for HTML, which a prompt does not need."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


def _without_null(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, rejecting nulls: most filters would turn a null into the word None."""
    place = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @wraps(apply)
    def applied(*arguments: Any, **options: Any) -> Any:
        if len(arguments) > place:
            _reject_null(arguments[place])
        return apply(*arguments, **options)

    return applied


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_reject_null,
    )
    filters = environment.filters | {"fence": _fence, "tojson": _tojson}
    environment.filters = {
        name: apply if name in _TAKE_NULL else _without_null(apply) for name, apply in filters.items()
    }
    return environment


def _require_known(tree: nodes.Template, field: str) -> None:
    """Raises `UsageError` for an unknown filter or test, even in a branch that Jinja checks only when it is taken."""
    for kind, known in (("filter", _environment().filters), ("test", _environment().tests)):
        for node in tree.find_all(nodes.Filter if kind == "filter" else nodes.Test):
            if node.name not in known:
                close = closest(node.name, known)
                hint = f"; did you mean {close!r}?" if close else ""
                raise UsageError(
                    f"the template of `{field}` is broken at line {node.lineno}: there is no {kind} {node.name!r}{hint}"
                )


class Template:
    """A prompt template, compiled by the constructor; a mistake in it raises a `UsageError` that names the line.

    A null value that reaches the text fails the row, unless the template gives a default:
    `{{ note | default("none", true) }}` or `{{ note or "none" }}`.
    """

    def __init__(self, source: str, *, field: str) -> None:
        self.source = source
        try:
            tree = _environment().parse(source)
            for joined in tree.find_all(nodes.Concat):  # like a filter, `~` would turn a null into the word None
                joined.nodes = [nodes.Filter(part, "string", [], [], None, None) for part in joined.nodes]
            _require_known(tree, field)
            self._template = _environment().from_string(tree)
        except TemplateSyntaxError as error:
            raise UsageError(f"the template of `{field}` is broken at line {error.lineno}: {error.message}") from error
        self.names = frozenset(meta.find_undeclared_variables(tree))
        self.field = field
        # Most system prompts use no column: their text is rendered only once.
        self._is_constant = not any(tree.find_all(nodes.Name))
        self._constant: str | None = None

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that the template uses; None when it uses the whole row."""
        return None if WHOLE_ROW in self.names else self.names

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for one row. Raises `InvalidRow` when a required value is null or does not fit."""
        if self._constant is not None:
            return self._constant
        text = self._rendered(values)
        if self._is_constant:
            self._constant = text
        return text

    def _rendered(self, values: Mapping[str, Any]) -> str:
        try:
            # As in `Template.render`, without its merging of globals, which costs more than everything else.
            names = {**self._template.environment.globals, WHOLE_ROW: values, **values}
            return "".join(self._template.root_render_func(self._template.new_context(names, shared=True)))
        except NullValueError:
            nulls = sorted(name for name in self.names if values.get(name) is None and name != WHOLE_ROW)
            named = f"column {', '.join(map(repr, nulls))} is null" if nulls else "a value is null"
            raise InvalidRow(f"{named}, and the template of `{self.field}` gives no default for it") from None
        except UndefinedError as error:
            if isinstance(values, RowValues):
                for name in self.names & values.problems.keys():
                    raise InvalidRow(values.problems[name]) from None
            said = said_of_row(str(error.message), values)
            raise InvalidRow(f"the template of `{self.field}` does not fit this row: {said}") from None
        except (
            TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            said = f"{type(error).__name__}: {said_of_row(str(error), values)}"
            raise InvalidRow(f"the template of `{self.field}` failed: {said}") from None
