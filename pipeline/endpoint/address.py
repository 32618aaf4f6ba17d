"""Addresses from the command line: base URLs and their weights, validated and normalized."""

from __future__ import annotations

import math
import re
from urllib.parse import urlsplit, urlunsplit

from pipeline.faults import UsageError

COMPLETIONS = "/chat/completions"

_SMALLEST_WEIGHT, _LARGEST_WEIGHT = 0.001, 1000.0

_ON_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
"""Spellings of this machine to which a Google token may be sent: others may resolve to another machine."""

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[\w.]+)?")


def base_url_of(text: str) -> str:
    """A normalized base URL: no surrounding blanks, trailing slash or `/chat/completions`; a query is kept.

    Raises `UsageError` when it is not a base URL. No message repeats the URL, whose query may contain a key.
    """
    url = text.strip()
    if re.search(r"[^\x21-\x7e]|\\", url):
        raise UsageError(
            "--base-url is not a plain URL: it holds blanks, backslashes, or characters beyond printable ASCII"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # a port that is not a number, or an unclosed bracket
        raise UsageError("--base-url is not a URL: its host or port cannot be read") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise UsageError("--base-url must begin with https:// or http:// (or WEIGHT*https://)")
    if "@" in parts.netloc:
        raise UsageError("--base-url takes no user name and password: set OPENAI_API_KEY, or name --credentials")
    if not _HOST.fullmatch(host) or port == 0:
        raise UsageError("--base-url is not a URL: its host or port cannot be read")
    if "#" in url:
        raise UsageError("--base-url ends in a fragment (#...), which no server would see: leave it off")
    path = parts.path.rstrip("/")
    while path.endswith(COMPLETIONS):
        path = path.removesuffix(COMPLETIONS).rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def weighted_url(text: str) -> tuple[float, str]:
    """The weight and base URL: `2*https://...` gets twice the work of a URL without a weight. Raises `UsageError`."""
    weight, star, url = text.partition("*")
    if not star or "://" in weight:
        return 1.0, base_url_of(text)
    try:
        share = float(weight)
    except ValueError:
        share = math.nan
    if not _SMALLEST_WEIGHT <= share <= _LARGEST_WEIGHT:
        raise UsageError(
            f"the weight of a --base-url is a number from {_SMALLEST_WEIGHT:g} to {_LARGEST_WEIGHT:g}, as in "
            f"2*https://example.com/v1"
        )
    return share, base_url_of(url)


def chat_url(base_url: str) -> str:
    """The chat completions address of a base URL, whose query follows the path."""
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + COMPLETIONS, parts.query, ""))


def without_query(base_url: str) -> str:
    """A base URL without its query, which may contain a key, so that it can be stored as a name."""
    return base_url.partition("?")[0]


def is_vertex(base_url: str) -> bool:
    """Whether a Google token may be sent there by default: to Google, or to a gateway with a URL of Vertex's form."""
    parts = urlsplit(base_url)
    if parts.scheme != "https" and not is_here(base_url):
        return False
    google = (parts.hostname or "").endswith(".googleapis.com")
    return google or ("/projects/" in parts.path and "/locations/" in parts.path)


def is_here(base_url: str) -> bool:
    """Whether a base URL is on this machine."""
    return urlsplit(base_url).hostname in _ON_THIS_MACHINE
