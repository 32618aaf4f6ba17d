"""The text of a user's function, for fingerprints: its source, or what was compiled from it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

_MADE_FROM_TEXT = "<string>"
"""The file name of what `eval` and `exec` make. Python 3.13 keeps the program of `python -c` under it."""


def text_of(function: Callable[..., Any]) -> str:
    """The source; the digest of the compiled code, with its constants, if the source is not available."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_filename != _MADE_FROM_TEXT:
        try:
            return inspect.getsource(function)
        except (OSError, TypeError):
            pass
    return hashlib.sha256(_code_content(code) if code else repr(type(function)).encode()).hexdigest()


def _code_content(code: CodeType) -> bytes:
    """A function's instructions and constants: the instructions alone do not change with a text in it."""
    inner = [_code_content(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    plain = [
        sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant  # its order is random
        for constant in code.co_consts
        if not isinstance(constant, CodeType)
    ]
    return repr((code.co_code, code.co_names, plain, inner)).encode()
