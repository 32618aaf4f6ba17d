"""Replies for tests: answers as they come, streamed or not, and what they are read as."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel

from pipeline.data import Failure, Reply, Request
from pipeline.endpoint.client import Endpoint, EndpointAddress, open_endpoint
from pipeline.endpoint.stream import whole_body
from pipeline.endpoint.token_source import ApiKey
from pipeline.endpoint.wire import CompletionChoice, read_completion
from pipeline.job.reply_parser import ReplyParser
from pipeline.schema.from_pydantic import shape_of
from tests.mutations import written
from tests.servers import Answer as Says
from tests.servers import Call, Server, scripted

Json = dict[str, Any]

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DONE = b"data: [DONE]\n\n"


class Out(BaseModel):
    word: str
    size: int


TEXT, TYPED = ReplyParser(None), ReplyParser(shape_of(Out))
GOOD = '{"word": "one", "size": 3}'


def whole(message: object, finish: object = "stop", **choice: Any) -> Json:
    return {
        "id": "x",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}],
        "usage": USAGE,
    }


def plain(message: object, finish: object = "stop", **choice: Any) -> bytes:
    """An answer as it comes unstreamed."""
    return written(whole(message, finish, **choice))


def event(chunk: object) -> bytes:
    return b"data: " + written(chunk) + b"\n\n"


def streamed(message: object, finish: object = "stop", **choice: Any) -> bytes:
    """The same answer as a stream: the message as one delta, then the end."""
    first = {"id": "x", "choices": [{"index": 0, "delta": message}]}
    last = {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": finish, **choice}], "usage": USAGE}
    return event(first) + event(last) + DONE


def both(message: object, finish: object = "stop", **choice: Any) -> list[bytes]:
    """The body of an answer, as it comes and as its stream adds up to."""
    return [plain(message, finish, **choice), whole_body(streamed(message, finish, **choice))]


def answer(body: bytes) -> CompletionChoice:
    (found,) = read_completion(body).answers
    return found


def ended(reader: ReplyParser, body: bytes) -> Any:
    """The value of a reply, or the fault."""
    outcome = reader.outcome(0, Reply(body))
    return outcome.fault if isinstance(outcome, Failure) else outcome.value


PLAIN = json.dumps(whole({"content": "Gr\u00fc\u00dfe \U0001f600"}), ensure_ascii=False)


@asynccontextmanager
async def connected(script: Callable[[Call], Says]) -> AsyncIterator[tuple[Endpoint, Server]]:
    async with (
        scripted(script) as server,
        open_endpoint(
            EndpointAddress.url(server.base_url), ApiKey("sk-canary-key"), connections=4, timeout_s=20.0
        ) as endpoint,
    ):
        yield endpoint, server


def request(*, stream: bool = False, **payload: Any) -> Request:
    return Request(
        0, {"messages": [{"role": "user", "content": "Say it"}], **({"stream": True} if stream else {}), **payload}
    )
