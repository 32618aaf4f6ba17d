"""Words and figures for people: cleaned, shortened, and written the same everywhere.

May import the standard library only. One more way to clean or cut a text goes into `characters`, one more kind of
figure into `figures`.
"""

from pipeline.text.characters import (
    ELLIPSIS,
    STEERING,
    clipped,
    closest,
    excerpt,
    in_words,
    nearest,
    one_line,
    printable,
    short_hash,
    visible,
)

__all__ = [
    "ELLIPSIS",
    "STEERING",
    "clipped",
    "closest",
    "excerpt",
    "in_words",
    "nearest",
    "one_line",
    "printable",
    "short_hash",
    "visible",
]
