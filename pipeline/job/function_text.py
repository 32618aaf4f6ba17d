"""The text of a user's function, for fingerprints: its source, or what was compiled from it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType
from typing import Any

_MADE_FROM_TEXT = "<string>"
"""The file name of what `eval` and `exec` make. Python 3.13 keeps the program of `python -c` under it."""

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...))


def text_of(function: Callable[..., Any]) -> str:
    """The source; the digest of the compiled code, with its constants and defaults, if the source is not available.

    Of a `functools.partial`, that of its function, with the arguments.
    """
    if isinstance(function, partial):
        return repr((text_of(function.func), _content(function.args), _content(function.keywords)))
    code = getattr(function, "__code__", None)
    if code is None or code.co_filename != _MADE_FROM_TEXT:
        try:
            return inspect.getsource(function)
        except (OSError, TypeError):
            pass
    content = repr(_content(function)) if isinstance(function, FunctionType) else repr(type(function))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _content(value: Any) -> Any:
    """A value as literals alone: the same in every process, where `repr` of an object would tell its address."""
    match value:
        case FunctionType():
            # Defaults are not part of the code: they are computed where the function is defined.
            return _content(value.__code__), _content(value.__defaults__), _content(value.__kwdefaults__)
        case CodeType():
            # The instructions alone do not change with a text in them.
            return value.co_code, value.co_names, _content(value.co_consts)
        case tuple() | list():
            return [type(value).__name__, *map(_content, value)]
        case set() | frozenset():
            return sorted(repr(_content(item)) for item in value)  # its order is random
        case dict():
            return [(_content(key), _content(inner)) for key, inner in value.items()]
        case _:
            return value if type(value) in _PLAIN else type(value).__qualname__
