"""Valid replies with something in them of another type, missing, or encoded otherwise; and a server that sends them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

from tests.servers import Answer, Call, Says

Json = dict[str, Any]

USAGE: Json = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
    "extra_properties": {"google": {"traffic_type": "ON_DEMAND"}},
}
SIGNED = {"google": {"thought_signature": "c2lnbmVk", "thought": False}}
TEXT = '{"word": "one", "size": 3}'
CALLS = [
    {
        "id": "a",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
        "extra_content": SIGNED,
    },
    {"id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
AUDIO = {"data": "aGVsbG8=", "extra_content": {"google": {"mime_type": "image/png"}}}
PARTS = [
    {"type": "text", "text": "hm", "extra_content": {"google": {"thought": True}}},
    {"type": "text", "text": TEXT},
]

MESSAGES: list[Json] = [
    {"role": "assistant", "content": TEXT, "extra_content": SIGNED, "refusal": None, "reasoning_content": "hm"},
    {"role": "assistant", "content": PARTS},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "assistant", "content": None, "audio": AUDIO},
]
ERROR = [
    {
        "error": {
            "code": 503,
            "message": "overloaded",
            "status": "UNAVAILABLE",
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.1s"}],
        }
    }
]

ODD: list[Callable[[Random], Any]] = [
    lambda _: None,
    lambda _: True,
    lambda _: 0,
    lambda _: -1,
    lambda _: 2**31,
    lambda _: 2**63 - 1,
    lambda _: 10**25,
    lambda _: 0.1,
    lambda _: 1e308,
    lambda _: float("nan"),
    lambda _: float("-inf"),
    lambda _: "",
    lambda _: "x",
    lambda _: "429",
    lambda _: "null",
    lambda _: "half \ud83d",
    lambda _: "\x00\u2028\x1b[31m",
    lambda _: "SAFETY",
    lambda _: "MAX_TOKENS",
    lambda _: "error",
    lambda _: "y" * 5000,
    lambda _: [],
    lambda _: {},
    lambda _: [None, [], {}],
    lambda _: {"text": "x", "error": {"code": 429}},
    lambda _: ["x", {"type": "text", "text": "y"}],
    lambda dice: f"@list-{dice.choice([3, 150, 300, 900, 5000])}@",
    lambda dice: f"@dict-{dice.choice([3, 150, 300, 900, 5000])}@",
]

_DEEP = re.compile(r'"@(list|dict)-([0-9]+)@"')


def completion(message: Json) -> Json:
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    choice = {"index": 0, "finish_reason": finish, "logprobs": None, "message": message}
    return {
        "choices": [choice],
        "created": 1,
        "id": "an-id",
        "model": "google/gemini-2.5-pro",
        "object": "chat.completion",
        "system_fingerprint": "",
        "usage": USAGE,
    }


def chunks(message: Json) -> list[Json]:
    """The same answer in three chunks."""
    whole = completion(message)
    choice = whole["choices"][0]
    content = message.get("content")
    deltas: list[Json] = [{"role": "assistant"}, {name: value for name, value in message.items() if name != "role"}]
    if isinstance(content, str):
        deltas = [{**deltas[1], "content": content[:7]}, {"content": content[7:]}]
    head = {name: whole[name] for name in ("created", "id", "model", "system_fingerprint")}
    made = [{**head, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    last = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}], "usage": USAGE}
    return [*made, last]


def mutated(document: Any, dice: Random, changes: int) -> Any:
    """A copy with so many of its places changed: to another type, away, or into a list or an object."""
    root = [copy.deepcopy(document)]
    for _ in range(changes):
        container, key = dice.choice(places(root))
        match dice.randrange(8):
            case 0 if container is not root:
                container.pop(key)
            case 1:
                container[key] = [container[key]]
            case 2:
                container[key] = {dice.choice(["text", "0", "message", "error", "function"]): container[key]}
            case _:
                container[key] = dice.choice(ODD)(dice)
    return root[0]


def places(root: Any) -> list[tuple[Any, Any]]:
    """Every place of a document, as a container and a key."""
    found: list[tuple[Any, Any]] = []
    left = [root]
    while left:
        container = left.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                left.append(container[key])
    return found


def written(document: Any) -> bytes:
    """JSON, with NaN, lone surrogates, and as deep as a mutation says."""

    def deep(found: re.Match[str]) -> str:
        depth = int(found[2])
        opening, closing = ("[", "]") if found[1] == "list" else ('{"a":', "}")
        return opening * depth + "1.5" + closing * depth

    return _DEEP.sub(deep, json.dumps(document)).encode()


def body_of(dice: Random) -> tuple[bytes, str]:
    """A body that a server may send, and its content type."""
    message = dice.choice(MESSAGES)
    changes = dice.choice([0, 1, 1, 1, 1, 2, 3])
    match dice.randrange(10):
        case 0:
            return written(mutated(ERROR, dice, changes)), "application/json"
        case 1 | 2 | 3 | 4:
            stream = mutated(chunks(message), dice, changes)
            events = [written(chunk) for chunk in (stream if isinstance(stream, list) else [stream])]
            return _framed(events, dice), "text/event-stream"
        case _:
            return _encoded(written(mutated(completion(message), dice, changes)), dice), "application/json"


def _framed(events: list[bytes], dice: Random) -> bytes:
    end = dice.choice([b"\n\n", b"\n\n", b"\r\n\r\n", b"\r\r"])
    before = dice.choice([b"", b"", b": ping\n\n", b"id: 7\n", b"event: message\n", b"retry: 100\n\n", b"data: \n\n"])
    stream = b"".join(before + b"data: " + event + end for event in events)
    return dice.choice([b"", b"", b"\xef\xbb\xbf", b"\n"]) + stream + dice.choice([b"data: [DONE]\n\n", b""])


def _encoded(body: bytes, dice: Random) -> bytes:
    match dice.randrange(12):
        case 0:
            return b"\xef\xbb\xbf" + body
        case 1:
            return body.decode().encode(dice.choice(["utf-16", "utf-16-le", "utf-32"]))
        case 2:
            at = dice.randrange(len(body))
            return body[:at] + bytes([dice.randrange(256)]) + body[at + 1 :]
    return body


def script(call: Call) -> Says:
    """Answers a prompt that ends in a number by the body of that number; a later turn by another one."""
    messages = call.json()["messages"]
    number = next(int(str(m["content"]).rpartition(" ")[2]) for m in messages if m["role"] == "user")
    body, kind = body_of(Random(number * 1000 + len(messages)))
    return Answer(body, 200, {"Content-Type": kind})
