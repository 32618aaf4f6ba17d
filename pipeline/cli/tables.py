"""Small tables for people. Text of a model is shown as text, never as markup or terminal control."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.text import ELLIPSIS, STEERING, excerpt, printable

_IN_JSON = re.compile(rf"[{STEERING}\u2028\u2029]")


def json_line(value: Any, *, default: Callable[[object], Any] = str) -> str:
    """A value as one line of JSON. Characters that could control a terminal or end the line are escaped.

    So are characters that standard output cannot encode.
    """
    text = json.dumps(value, ensure_ascii=False, default=default)
    if not encodable(text):
        text = json.dumps(value, default=default)
    return _IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def encodable(text: str) -> bool:
    """Whether standard output can encode every character."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def short(value: Any, width: int = 60) -> str:
    """A value on one line, cut to `width` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else _word(value)
    return excerpt(" ".join(printable(text).split()), width, ELLIPSIS)


def _word(value: Any) -> str:
    return "" if value is None else str(value)


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Prints rows with the same keys as a table, as wide as the terminal."""
    from rich.box import ASCII2, SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    lines = SIMPLE_HEAD if encodable(SIMPLE_HEAD.head_row_horizontal) else ASCII2
    table = Table(box=lines, pad_edge=False, collapse_padding=True)
    for name in rows[0]:
        table.add_column(Text(printable(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row.values()))
    Console(soft_wrap=False, highlight=False).print(table)
