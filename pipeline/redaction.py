"""What may not be told: secrets, and in messages the text of rows. Servers like to tell callers what they sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

REDACTED = "[redacted]"
QUOTED = "[...]"

SHORTEST_SECRET = 12
"""A key of fewer characters protects nothing (`x`, for a server that wants none), and may be any word of an answer."""

_ENOUGH = 8
"""So many characters of a secret are taken for it: a message may hold no more than its beginning."""

_WINDOW = 16
_STEP = 8

_SECRET = re.compile(
    r"(?i)ya29\.[\w.~+/-]+|AIza[\w-]{20,}|GOCSPX-[\w-]+|"
    # Also after an escape in JSON.
    r"(?:\b|(?<=\\[nrt]))(?:bearer\s+[\w.~+/=-]+|1//[\w-]{20,}|sk-[\w-]{8,}|eyJ[\w-]+\.[\w.-]+)"
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def redacted(text: str) -> str:
    """`text` on one line, without anything that looks like a token or a key."""
    return one_line(_SECRET.sub(REDACTED, text)).strip()


def one_line(text: str) -> str:
    """`text` with a blank for what ends lines or steers terminals."""
    return _UNPRINTABLE.sub(" ", text)


def unsaid(message: str, secret: str | None) -> str:
    """`message` without the secret, nor the beginning of it that a cut has left."""
    if secret is None or len(secret) < SHORTEST_SECRET:
        return message
    beginning = secret[:_ENOUGH]
    while (at := message.find(beginning)) >= 0:
        end = at + _ENOUGH
        while end < len(message) and message[end] == secret[end - at : end - at + 1]:
            end += 1
        message = message[:at] + REDACTED + message[end:]
    return message


def unsaid_in(body: bytes, secret: str) -> bytes:
    """A body without the secret that it was asked with, in whichever encoding JSON comes."""
    if len(secret) < SHORTEST_SECRET:
        return body
    body = body.replace(secret.encode(), REDACTED.encode())
    if b"\0" in body:
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            body = body.replace(secret.encode(encoding), REDACTED.encode(encoding))
    return body


def unquoted(message: str, texts: Iterable[str]) -> str:
    """`message` with `[...]` for what it quotes of `texts`: whole texts, runs of 23 characters, some shorter ones."""
    for text in map(one_line, texts):
        if len(text) >= _STEP:
            message = message.replace(text, QUOTED)
        at = 0
        while at + _WINDOW <= len(message):
            if message[at : at + _WINDOW] in text:
                start, end = _quote(message, at, text)
                message = message[:start] + QUOTED + message[end:]
                at = start + len(QUOTED)
            else:
                at += _STEP
    return message


def _quote(message: str, at: int, text: str) -> tuple[int, int]:
    """From where to where `message` quotes `text` around `at`."""
    start, end = at, at + _WINDOW
    while start > 0 and message[start - 1 : end] in text:
        start -= 1
    while end < len(message) and message[start : end + 1] in text:
        end += 1
    return start, end


def texts_of(payload: Mapping[str, Any]) -> Iterator[str]:
    """The texts that a request sends, but for the instructions, which are the job's own."""
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list | tuple) else ():
        if not isinstance(message, Mapping) or message.get("role") in {"system", "developer"}:
            continue
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text
