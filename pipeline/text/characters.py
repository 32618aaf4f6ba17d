"""Text for people: cleaned, shortened, matched to what was meant. No package has cleaners of its own.

Two sets of characters are taken out: `printable` removes what could steer a terminal, `visible` marks everything that
cannot be seen, for pages and Markdown.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence

STEERING = r"\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that control a terminal or change the writing direction, as a part of a set in a regular expression."""

_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f{STEERING}]")
_LINE_ENDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029][\x00-\x20\x7f-\x9f\u2028\u2029]*")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_PICTURES = 0x2400
_DELETE_PICTURE = "\N{SYMBOL FOR DELETE}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def printable(text: str) -> str:
    """`text` without control characters that move the cursor, change colours or the writing direction.

    Line ends and tabs stay.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def visible(text: str) -> str:
    """`text` with invisible and direction-changing characters escaped.

    Line ends and tabs stay. The result can always be encoded, even if the text has lone surrogates.
    """
    return _UNSEEN.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    return _DELETE_PICTURE if code == 0x7F else f"⟨U+{code:04X}⟩"


def one_line(text: str) -> str:
    """`text` with a blank for each run of line ends and terminal control characters."""
    return _LINE_ENDS.sub(" ", text)


def excerpt(text: str, most: int, mark: str = "...") -> str:
    """`text`, or its beginning and `mark`: at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - len(mark)]}{mark}"


def clipped(text: str, most: int) -> str:
    """`text`, or its first `most` characters and the length of the rest."""
    if len(text) <= most:
        return text
    return f"{text[:most]}{ELLIPSIS} ({len(text) - most:,} more characters)"


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that was probably meant; None if none is similar. `cutoff` is the least similarity, up to 1."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown name: the closest known one, or all of them."""
    close = closest(name, known)
    return f" (known: {', '.join(known)})" if close is None else f"; did you mean {close!r}?"


def short_hash(content: str | bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256, to tell texts apart; lone surrogates are allowed."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:16]


def in_words(value: object) -> str:
    """A value that JSON cannot hold, for people: bytes by their size, others as text."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
