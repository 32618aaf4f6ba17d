"""What identifies the messages of a request: what they say, and not the form in which they were sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby, pairwise
from typing import Any

import orjson

_ROLES = {"developer": "system", "function": "tool"}
_PLAIN_ROLES = frozenset({"system", "user", "assistant"})


def digest_of(messages: Any) -> bytes:
    """16 bytes that identify messages which were read without a complaint.

    The same for the same contents in OpenAI's and in Gemini's own form: independent of key order and whitespace,
    of ids and signatures of calls, of how a text is split into parts, and of how media are written around their data.
    """
    said = messages if _is_plain(messages) else _canonical(messages)
    return blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _is_plain(messages: Sequence[Any]) -> bool:
    """Whether these messages, nearly all that are sent, are in canonical form already."""
    for number, message in enumerate(messages):
        if len(message) != 2 or not isinstance(message.get("content"), str) or message["role"] not in _PLAIN_ROLES:
            return False
        if number and message["role"] == "system":
            return False
    return all(one["role"] != other["role"] for one, other in pairwise(messages))


def _canonical(messages: Sequence[Any]) -> list[Any]:
    """What systems say first, then the turns; neighbours of one role are one message."""
    roles = [_ROLES.get(message["role"], message["role"]) for message in messages]
    order = sorted(zip(roles, messages, strict=True), key=lambda each: each[0] != "system")
    return [
        {"content": _joined(item for _, message in group for item in _items(message)), "role": role}
        for role, group in groupby(order, key=lambda each: each[0])
    ]


def _joined(items: Iterator[list[Any]]) -> Any:
    """The items, with neighbouring texts as one, and empty ones left out; a text alone if there is nothing else."""
    found: list[list[Any]] = []
    for kind, group in groupby((item for item in items if item != ["text", ""]), key=lambda item: item[0]):
        inner = [item[1] for item in group]
        found += [[kind, "\n".join(inner)]] if kind == "text" else [[kind, each] for each in inner]
    if not found:
        return ""
    return found[0][1] if len(found) == 1 and found[0][0] == "text" else found


def _items(message: Any) -> Iterator[list[Any]]:
    content = message.get("content")
    if message["role"] in {"tool", "function"}:
        yield ["result", _result(content)]
        return
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
        yield _item(part)
    for call in (message.get("tool_calls") if message["role"] == "assistant" else None) or ():
        arguments = orjson.loads(call["function"].get("arguments") or "{}")
        yield ["call", [call["function"]["name"], arguments]]


def _item(part: Any) -> list[Any]:
    kind = part["type"]
    if kind in {"text", "refusal"}:
        return ["text", part[kind]]
    inner = part[kind]
    place: str = (inner.get("url") or inner["data"]) if isinstance(inner, dict) else inner
    if place.startswith(("gs://", "https://", "http://")):
        return ["place", place]
    data = place.partition(",")[2] if place.startswith("data:") else place
    return ["data", blake2b(data.encode(), digest_size=16).hexdigest()]


def _result(content: Any) -> Any:
    """What a tool returned; JSON is compared as a value."""
    text = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content or ())
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
