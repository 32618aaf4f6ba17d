"""Values out of foreign JSON: typed, or None. Nothing that others send is used before it went through here."""

from __future__ import annotations


def dig(value: object, *names: str) -> object:
    """What lies at the end of a path of names; None where there is no such path."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def as_text(value: object) -> str | None:
    """A text."""
    return value if isinstance(value, str) else None


def as_integer(value: object) -> int | None:
    """An integer, and no boolean."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
