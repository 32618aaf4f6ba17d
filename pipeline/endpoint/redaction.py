"""Redacts secrets, and in messages the text of rows, since servers often repeat what callers sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.endpoint.secret_redaction import IN_BODIES, IN_MESSAGES, SHORTEST_SECRET, without_secret
from pipeline.text import one_line

REDACTED = "[redacted]"
QUOTED = "[...]"

MOST_READ = 8192
"""Characters of foreign text that are examined; no message quotes more."""

MOST_QUOTED = 200
"""Characters of a row's value that our messages quote."""

_SHORTEST_SETTING = 4

_WINDOW = 16
_STEP = 8

_HALF = 64
"""Characters before a cut that may be the beginning of a secret, too short to be recognized as one."""

_FIELDS = (
    r"private[_-]?key|refresh[_-]?token|access[_-]?token|id[_-]?token|subject[_-]?token|session[_-]?token|"
    r"client[_-]?secret|(?:client[_-]?)?assertion|(?:x-goog-)?api[_-]?key|secret[_-]?access[_-]?key|password|passwd|"
    r"authorization"
)
"""Names whose values are secret."""

_SHAPES = (
    r"(?i:ya29\.)[\w.~+/-]+|1//[\w-]{10,}|4/0A[\w-]{10,}|AIza[\w-]{10,}|AQ\.[\w-]{20,}|GOCSPX-[\w-]+|"
    r"[sprk]k-[\w-]{8,}|[sr]k_(?:live|test)_\w{8,}|github_pat_\w{8,}|xox[abeprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|"
    r"(?:gsk|xai|hf|nvapi|pplx|r8|fw|tgp|csk|gh[oprsu]|glpat|npm|dapi|shpat)[_-][\w-]{16,}|"
    r"eyJ[\w-]{6,}+(?:\.[\w-]*+){0,6}|(?i:bearer)\s{1,8}[\w.~+/=-]+"
)
"""Patterns of tokens and keys: Google's, OpenAI's, those of other providers, and JSON web tokens."""

_KEY = "[A-Z0-9 ]{0,40}PRIVATE KEY"

_SECRETS = [
    # A private key, even without its end, and the last line of one without its beginning.
    re.compile(rf"-----BEGIN {_KEY}.*?(?:-----END {_KEY}[ A-Z]{{0,10}}-----|\Z)", re.DOTALL),
    re.compile(rf"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/=]{{1,76}}+(?:\\{{1,8}}[nr]|\s){{0,4}}-----END {_KEY}-{{0,5}}"),
    # The value of a field, with or without quotes (which may be escaped).
    re.compile(
        rf"(?i)(?<![a-z0-9])(?P<kept>(?:{_FIELDS})(?![\w-])\\*[\"']?\s{{0,4}}(?:=>|[:=])\s{{0,4}})"
        r"(?:\"(?:[^\"\\]|\\.)*+\"?|'[^']*+'?|(?P<quote>\\+[\"']).*?(?:(?P=quote)|\Z)|(?<==)[^\s\"'&,;<>{}\\]+|"
        r"(?=[^\s\"',;]{0,80}\d)[^\s\"'&,;<>{}\\]{6,})",
        re.DOTALL,
    ),
    re.compile(r"(?i)(?P<kept>[?&](?:key|token|sig|signature|auth)=)[^\s&\"'<>]+"),
    # The user name and password of an address, with or without its scheme.
    re.compile(
        r"(?P<kept>\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)"
        r"(?:[^\s/?#@\"'<>]{1,512}+|[^\s:/@\"'<>]{0,128}+:(?!\d{1,5}/)[^\s@\"'<>]{1,256}+)(?=@)"
    ),
    re.compile(r"(?<![^\s\"'(=,;<>])[^\s:/@\"'(=,;<>]{1,128}+:[^\s/@\"'<>]{1,256}+(?=@[\w\[])"),
    re.compile(rf"(?:\b|(?<=\\[nrt]))(?:{_SHAPES})"),
]
_OPAQUE = re.compile(r"(?:[A-Za-z0-9+/\n]|\\{1,8}[/n]){40,}+={0,2}|[\w-]{40,}+", re.ASCII)
"""A long run of base64, even over several lines: part of a key if it has capitals, small letters and digits."""

_FEWEST_DIGITS = 3


def redact_tokens(text: str) -> str:
    """The beginning of `text` on one line, without anything that looks like a token, a key or a password.

    At most `MOST_READ` characters of it, so that time is bounded, whatever a server sends. No partial secret is left at
    the cut.
    """
    text = _beginning(text)
    for pattern in _SECRETS:
        text = pattern.sub(_hidden, text)
    return one_line(_OPAQUE.sub(_hidden_if_opaque, text)).strip()


def quoted(value: str) -> str:
    """A value for a message: its `repr`, or only the beginning if it is long."""
    return repr(value) if len(value) <= MOST_QUOTED else f"{value[:MOST_QUOTED]!r}..."


def said_of_row(said: str, values: Mapping[str, Any]) -> str:
    """The message of an exception raised for a row's values, without its quotes from them."""
    return redact_quotes(_beginning(said), _texts_in(values))[:MOST_QUOTED]


def redact_secret(message: str, secret: str | None) -> str:
    """`message` without the secret, or any part of it of 8 characters or more, in any encoding."""
    if secret is None:
        return message
    redacted = without_secret(message.encode("utf-8", "surrogatepass"), secret, IN_MESSAGES, REDACTED.encode())
    return redacted.decode("utf-8", "surrogatepass")


def redact_secret_bytes(body: bytes, secret: str) -> bytes:
    """A response body without the secret of its request, or a long part of it, in any encoding."""
    return without_secret(body, secret, IN_BODIES, REDACTED.encode())


def redact_settings(message: str, secrets: Iterable[str]) -> str:
    """`message` without these values of settings: also shorter ones, which `redact_secret` takes for common words."""
    for secret in secrets:
        if _SHORTEST_SETTING <= len(secret) < SHORTEST_SECRET:
            message = message.replace(secret, REDACTED)
        else:
            message = redact_secret(message, secret)
    return message


def redact_quotes(message: str, texts: Iterable[str]) -> str:
    """`message` with `[...]` for quotes from `texts`: whole texts, runs of 23 characters, some shorter ones."""
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
    """The start and end of the quote from `text` around `at` in `message`."""
    start, end = at, at + _WINDOW
    while start > 0 and message[start - 1 : end] in text:
        start -= 1
    while end < len(message) and message[start : end + 1] in text:
        end += 1
    return start, end


def user_texts(payload: Mapping[str, Any]) -> Iterator[str]:
    """The texts in a request, except the instructions, which belong to the job."""
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list | tuple) else ():
        if not isinstance(message, Mapping) or message.get("role") in {"system", "developer"}:
            continue
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text


def _texts_in(value: Any) -> Iterator[str]:
    """The texts in a value, at any depth."""
    rest = [value]
    while rest:
        match rest.pop():
            case str() as text:
                yield text
            case Mapping() as fields:
                rest += fields.values()
            case list() | tuple() as items:
                rest += items


def _beginning(text: str) -> str:
    """The part of a text that is examined, without a possible beginning of a secret at the cut."""
    if len(text) <= MOST_READ:
        return text
    head, tail = text[: MOST_READ - _HALF], text[MOST_READ - _HALF : MOST_READ]
    return head + tail[: max(map(tail.rfind, " \t\n\"',;")) + 1]


def _hidden(found: re.Match[str]) -> str:
    return f"{found.groupdict().get('kept') or ''}{REDACTED}"


def _hidden_if_opaque(found: re.Match[str]) -> str:
    run = found[0]
    digits = sum(character.isdigit() for character in run)
    is_opaque = digits >= _FEWEST_DIGITS and run != run.lower() and run != run.upper()
    return REDACTED if is_opaque else run
