"""The fields of a foreign server's job that every family has: counts, and why it failed."""

from __future__ import annotations

import re

from pipeline.endpoint.error_body import EXCERPT
from pipeline.endpoint.redaction import redact_tokens
from pipeline.endpoint.untrusted_json import as_integer
from pipeline.text import one_line

_MOST_ROWS = 10**15


def read_count(value: object) -> int | None:
    """A number of rows, which Google's JSON writes as text; None for anything else, such as -1 for unknown."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[0-9]{1,15}", value) else None
    number = as_integer(value)
    return number if number is not None and 0 <= number < _MOST_ROWS else None


def read_message(text: object) -> str | None:
    """A server's text on one line, without secrets; None if there is none."""
    if not isinstance(text, str):
        return None
    return one_line(redact_tokens(text[: 2 * EXCERPT]))[:EXCERPT].strip() or None
