"""What the tests of the endpoint say to it, and how they read what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import anyio.lowlevel
import orjson

from pipeline.emulator.answers.answers import answers
from pipeline.emulator.protocol.request import read_request
from pipeline.emulator.server.bodies import choices_of
from pipeline.emulator.vertex import ReceivedResponse, Vertex

MODEL = "google/gemini-test"
Json = dict[str, Any]


def asking(text: str | Sequence[Json] = "Tell me about rivers.", **more: Any) -> Json:
    """A request with one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def choices(payload: Mapping[str, Any], *, seed: int = 0, kind: str | None = None) -> list[Json]:
    """The choices for a request, without a server."""
    asked = read_request(orjson.dumps(payload), default_model=None)
    found, reasoning = answers(asked, seed)
    return choices_of(asked, found, reasoning, kind)


def message(payload: Mapping[str, Any], *, seed: int = 0, kind: str | None = None) -> Json:
    """The message of the first choice."""
    return dict(choices(payload, seed=seed, kind=kind)[0]["message"])


def content(answered: ReceivedResponse) -> str:
    """The first choice's text."""
    assert answered.status == 200, answered.body
    return str(answered.json()["choices"][0]["message"]["content"])


def refusal(answered: ReceivedResponse) -> str:
    """The message of a list-wrapped 400 INVALID_ARGUMENT."""
    error = answered.json()[0]["error"]
    assert (answered.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    return str(error["message"])


def lines(body: bytes) -> list[str]:
    """The data of the events in a stream."""
    events = body.decode().removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


def chunks(body: bytes) -> list[Json]:
    """The chunks of a stream that ended as it should."""
    *data, last = lines(body)
    assert last == "[DONE]"
    return [json.loads(each) for each in data]


def deltas(found: Sequence[Json], index: int = 0) -> Iterator[Json]:
    """The deltas of one choice."""
    return (part["delta"] for chunk in found for part in chunk["choices"] if part["index"] == index)


async def until(vertex: Vertex, name: str, value: int) -> None:
    """Asks for the counters until one has its value; the caller bounds the wait."""
    while (await vertex.stats())[name] != value:
        await anyio.lowlevel.checkpoint()
