"""Splits a completion into the chunks of a stream; assembled, they are the completion again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from pipeline.emulator.protocol.wire import JsonObject, dump
from pipeline.emulator.server.faults import SAME_ID

DONE = b"data: [DONE]\n\n"
PIECE = 24  # characters per fragment of arguments

_WORDS = re.compile(r"\s*(?:\S{1,12}\s*){1,4}|\s+")


def events(body: JsonObject, *, fragments: bool) -> list[bytes]:
    """The server-sent events of a completion, without the final `[DONE]`.

    Every delta has a role; the last delta of a choice has its finish reason, and the very last one the usage. Function
    calls are sent in one delta each, or with `fragments` in pieces.
    """
    return [b"data: " + dump(chunk) + b"\n\n" for chunk in chunks(body, fragments=fragments)]


def chunks(body: JsonObject, *, fragments: bool) -> list[JsonObject]:
    """The chunks; parts missing from the completion are missing here too."""
    head = {name: body[name] for name in ("created", "id", "model", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    by_choice = [_parts(choice, fragments=fragments) for choice in body.get("choices", ())]
    parts = [part for part in chain.from_iterable(zip_longest(*by_choice)) if part is not None]
    whole = [{**head, "choices": [part]} for part in parts]
    if not whole:
        whole = [{**head, **({"choices": []} if "choices" in body else {})}]
    if "promptFeedback" in body:
        whole[-1]["promptFeedback"] = body["promptFeedback"]
    if "usage" in body:
        whole[-1]["usage"] = body["usage"]
    return whole


def _parts(choice: Mapping[str, Any], *, fragments: bool) -> list[JsonObject]:
    """One choice, delta by delta."""
    head = {"index": choice["index"], "logprobs": None}
    message = choice.get("message")
    if message is None:
        return [{**head, "finish_reason": choice["finish_reason"]}]
    deltas = list(_deltas(message, fragments=fragments)) or [{}]
    if "extra_content" in message:
        deltas[-1]["extra_content"] = message["extra_content"]
    parts: list[JsonObject] = [{**head, "delta": {"role": "assistant", **delta}} for delta in deltas]
    parts[-1]["finish_reason"] = choice["finish_reason"]
    return parts


def _deltas(message: Mapping[str, Any], *, fragments: bool) -> Iterator[JsonObject]:
    for piece in _WORDS.findall(message.get("content") or ""):
        yield {"content": piece}
    if "audio" in message:
        yield {"audio": message["audio"]}
    for index, call in enumerate(message.get("tool_calls", ())):
        for delta in _fragments(call, index) if fragments else [{**call, "index": index}]:
            yield {"tool_calls": [delta]}


def _fragments(call: Mapping[str, Any], index: int) -> Iterator[JsonObject]:
    """A call in pieces, each with its id, name and type; the first has a neighbour's index, as Google sends it.

    Without an id (a fault) the index is right: otherwise nothing would distinguish the calls.
    """
    known = call["id"] not in {"", SAME_ID}
    text: str = call["function"]["arguments"]
    pieces: Sequence[str] = ["", *(text[at : at + PIECE] for at in range(0, len(text), PIECE))]
    for number, piece in enumerate(pieces):
        fragment = {
            "function": {"arguments": piece, "name": call["function"]["name"]},
            "id": call["id"],
            "index": index ^ 1 if known and number == 0 else index,
            "type": call["type"],
        }
        if number == 0 and "extra_content" in call:
            fragment["extra_content"] = call["extra_content"]
        yield fragment
