"""The chat endpoint: who may ask, how much, and what is sent back."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from aiohttp import web

from pipeline.emulator import responses
from pipeline.emulator.answers import Answer, answers, tokens_in
from pipeline.emulator.faults import HTML_PAGE, PAGES, WITHOUT_OUTPUT, chosen, damaged_body, damaged_text, problem
from pipeline.emulator.options import Options
from pipeline.emulator.quota import Bucket
from pipeline.emulator.request import ChatRequest, read_request
from pipeline.emulator.stats import Stats
from pipeline.emulator.tokens import Tokens as AccessTokens
from pipeline.emulator.wire import (
    Json,
    Problem,
    Tokens,
    choice,
    completion,
    dump,
    exhausted,
    front_end_page,
    not_found,
    response_id,
)

Answered = tuple[web.StreamResponse, str]
"""A response and the status under which it is counted."""


@dataclass(slots=True)
class Chat:
    """Answers chat completions. `options` may be exchanged while it runs; the bucket follows at `adopt`."""

    options: Options
    tokens: AccessTokens
    stats: Stats = field(default_factory=Stats)
    bucket: Bucket | None = None
    random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.random.seed(self.options.seed)
        self.adopt(self.options)

    def adopt(self, options: Options) -> None:
        """Goes on with other options. A changed quota starts with a full bucket."""
        if options.quota_rps is None:
            self.bucket = None
        elif self.bucket is None or self.bucket.rate != options.quota_rps:
            self.bucket = Bucket(options.quota_rps, time.monotonic())
        self.tokens.life = options.token_life
        self.options = options

    async def complete(self, request: web.BaseRequest, parent: str, endpoint: str) -> web.StreamResponse:
        """One completion; `parent` is `projects/P/locations/L`. Errors are answered, never raised."""
        self.stats.begin()
        status = "500"  # what remains after a bug of ours
        try:
            response, status = await self._answered(request, parent, endpoint)
        except Problem as refusal:
            response, status = self._refusal(refusal), str(refusal.http_status)
        except asyncio.CancelledError:  # the client has left
            status = "499"
            raise
        finally:
            self.stats.end(status)
        return response

    async def _answered(self, request: web.BaseRequest, parent: str, endpoint: str) -> Answered:
        self.tokens.check(request.headers.get("Authorization"))
        self._admit()
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _page("413")
        asked = read_request(body, default_model=None if endpoint == "openapi" else f"google/gemini-tuned-{endpoint}")
        if not any(fnmatchcase(asked.model, pattern) for pattern in self.options.models):
            raise not_found(asked.model, parent)
        repeat = self.stats.sight(asked.digest)
        kind = self._fault(asked, repeat)
        if kind is not None and (failed := await self._failed(request, asked, kind, parent)):
            return failed
        await self._wait()
        return await self._completed(request, asked, kind, repeat)

    def _admit(self) -> None:
        most = self.options.quota_in_flight
        if most is not None and self.stats.in_flight > most:
            raise exhausted(self.options.retry_info)
        if self.bucket is not None and not self.bucket.take(time.monotonic()):
            raise exhausted(self.options.retry_info)

    def _fault(self, asked: ChatRequest, repeat: int) -> str | None:
        options = self.options
        return chosen(
            options.faults,
            options.poison,
            prompt=asked.prompt,
            digest=asked.digest,
            repeat=repeat,
            seed=options.seed,
        )

    async def _failed(self, request: web.BaseRequest, asked: ChatRequest, kind: str, parent: str) -> Answered | None:
        """What is sent for a fault that leaves no completion; faults of the server's side take their time first."""
        if kind == "hang":
            return await responses.silence(), "499"
        error = problem(kind, model=asked.model, parent=parent, retry_info=self.options.retry_info)
        if error is not None and error.http_status < 500:
            raise error
        if error is None and kind not in {*PAGES, "drop", "html200", "list200", "empty"}:
            return None
        await self._wait()
        if error is not None:
            raise error
        match kind:
            case "drop":
                return responses.closed(request), "dropped"
            case "html200":
                return responses.html(HTML_PAGE), "200"
            case "list200":
                return responses.json(exhausted(self.options.retry_info).body("list")), "200"
            case "empty":
                return responses.json(b""), "200"
        return _page(kind)

    async def _completed(self, request: web.BaseRequest, asked: ChatRequest, kind: str | None, repeat: int) -> Answered:
        choices, reasoning = answers(asked, self.options.seed)
        content = completion(
            model=asked.model,
            ident=response_id(asked.digest, repeat),
            created=int(time.time()),
            choices=[_choice(index, answer, kind, asked, reasoning) for index, answer in enumerate(choices)],
            tokens=(counted := _counted(asked, choices, reasoning, kind)),
        )
        body = dump(damaged_body(kind, content, asked.digest))
        if kind == "truncated":
            return responses.json(body[: len(body) * 2 // 3]), "200"
        if kind == "partial":
            return await responses.half(request, body), "dropped"
        self.stats.bill(asked.digest, counted)
        return responses.json(body), "200"

    async def _wait(self) -> None:
        seconds, sigma = self.options.latency, self.options.latency_sigma
        if seconds and sigma:
            seconds *= self.random.lognormvariate(0.0, sigma)
        if seconds:
            await asyncio.sleep(seconds)

    def _refusal(self, refusal: Problem) -> web.Response:
        headers: dict[str, str] = {}
        if refusal.http_status in {429, 503} and self.options.retry_after is not None:
            headers["Retry-After"] = self.options.retry_after
        if refusal.http_status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="https://accounts.google.com/", error="invalid_token"'
        return responses.json(refusal.body(self.options.error_style), refusal.http_status, headers)


def _page(kind: str) -> Answered:
    return responses.html(front_end_page(int(kind), PAGES[kind]), int(kind)), kind


def _choice(index: int, answer: Answer, kind: str | None, asked: ChatRequest, reasoning: int) -> Json:
    message: Json = {"role": "assistant"}
    if answer.text is not None:
        message["content"] = damaged_text(kind, answer.text)
    if reasoning:
        signature = base64.b64encode(asked.digest * 4 + bytes([index])).decode()
        message["extra_content"] = {"google": {"thought_signature": signature}}
    return choice(index, message, answer.finish_reason)


def _counted(asked: ChatRequest, choices: list[Answer], reasoning: int, kind: str | None) -> Tokens:
    prompt = tokens_in(asked.characters)
    if kind in WITHOUT_OUTPUT:
        return Tokens(prompt, 0, (asked.max_tokens or reasoning or 1024) if kind in {"length", "no_message"} else 0)
    written = sum(tokens_in(len(damaged_text(kind, answer.text))) for answer in choices if answer.text is not None)
    return Tokens(prompt, written, reasoning)
