"""The chat endpoint: authentication, quota, and responses."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

from pipeline.emulator.answers.answers import answers
from pipeline.emulator.options import Options
from pipeline.emulator.protocol.request import ChatRequest, read_request
from pipeline.emulator.protocol.tiers import traffic_type
from pipeline.emulator.protocol.wire import (
    JsonObject,
    Problem,
    TokenCounts,
    completion,
    dump,
    exhausted,
    front_end_page,
    nonce_id,
    not_found,
    response_id,
    unavailable,
)
from pipeline.emulator.server import event_stream, responses
from pipeline.emulator.server.bodies import choices_of, counted
from pipeline.emulator.server.credentials import AccessTokens
from pipeline.emulator.server.faults import HTML_PAGE, PAGES, chosen, damaged_body, fitting, problem
from pipeline.emulator.server.quota import FixedWindow, TokenBucket, rate_at
from pipeline.emulator.server.stats import Given, Stats

UNSAFE = "[unsafe]"
"""A prompt with this text is blocked under the strictest safety setting."""

FIRST_CHUNK = 0.3
"""The share of its latency after which a stream begins."""

OPENAI_SERVER = "openai"
"""The name of the endpoint of a server like OpenAI's own, which takes an API key and models without a publisher."""

SentResponse = tuple[web.StreamResponse, str]
"""A response, and the status under which it is counted."""


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """An accepted request. `kind` is its fault, `repeat` how often its prompt came before."""

    http: web.BaseRequest
    chat: ChatRequest
    parent: str
    traffic: str
    kind: str | None
    repeat: int

    @property
    def location(self) -> str:
        """The last name of `projects/P/locations/L`."""
        return _location(self.parent)


@dataclass(slots=True)
class Chat:
    """Answers chat completions. `adopt` changes `options` at run time."""

    options: Options
    tokens: AccessTokens
    stats: Stats = field(default_factory=Stats)
    bucket: TokenBucket | FixedWindow | None = None
    began: float | None = None
    nonces: int = 0
    random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.random.seed(self.options.seed)
        self.adopt(self.options)

    def adopt(self, options: Options) -> None:
        """Switches to other options. A changed quota starts with a full bucket, a changed schedule at its beginning."""
        before = self.options
        if _quota(options) != _quota(before):
            self.bucket = None
        if options.capacity_schedule != before.capacity_schedule:
            self.bucket, self.began = None, None
        self.tokens.life = options.token_life
        self.options = options

    async def complete(self, request: web.BaseRequest, parent: str, endpoint: str) -> web.StreamResponse:
        """One completion; `parent` is `projects/P/locations/L`. Errors are answered, never raised."""
        self.stats.begin()
        status = "500"  # stays after a bug in the emulator
        try:
            response, status = await self._answered(request, parent, endpoint)
        except Problem as refusal:
            style = "object" if endpoint == OPENAI_SERVER else self.options.error_style
            response, status = self._refusal(refusal, style), str(refusal.http_status)
        except ConnectionError:  # the client disconnected during a stream
            response, status = responses.closed(request), "499"
        except asyncio.CancelledError:  # the same, before the stream or between two chunks
            status = "499"
            raise
        finally:
            self.stats.end(status, _location(parent))
        return response

    async def _answered(self, request: web.BaseRequest, parent: str, endpoint: str) -> SentResponse:
        self.tokens.check(request.headers.get("Authorization"), keys=endpoint == OPENAI_SERVER)
        location = _location(parent)
        if location in self.options.down_locations:
            raise unavailable()
        self._admit()
        traffic = traffic_type(request.headers, location)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _page("413")
        own = endpoint.isdecimal()
        chat = read_request(body, default_model=f"google/gemini-tuned-{endpoint}" if own else None)
        if not self.serves(chat.model, bare=endpoint == OPENAI_SERVER):
            raise not_found(chat.model, parent)
        repeat = self.stats.sight(chat.digest)
        asked = AcceptedRequest(request, chat, parent, traffic, self._fault(chat, repeat), repeat)
        if asked.kind is not None and (failed := await self._failed(asked)):
            return failed
        return await self._completed(asked)

    def serves(self, model: str, *, bare: bool) -> bool:
        """Whether a model is served; a `bare` one may have no publisher, as those of an OpenAI server."""
        return self.options.serves(f"openai/{model}" if bare and "/" not in model else model)

    def _admit(self) -> None:
        most = self.options.quota_in_flight
        if most is not None and self.stats.in_flight > most:
            raise exhausted(self.options.retry_info)
        if not self._granted(time.monotonic()):
            raise exhausted(self.options.retry_info)

    def _granted(self, now: float) -> bool:
        rate = self.options.quota_rps
        if self.options.capacity_schedule:
            self.began = now if self.began is None else self.began
            rate = rate_at(self.options.capacity_schedule, now - self.began, rate)
        if rate is None:
            return True
        if self.bucket is None:
            kind = FixedWindow if self.options.quota_fixed else TokenBucket
            self.bucket = kind(rate, now, self.options.quota_window_s)
        self.bucket.change(rate, now)
        return self.bucket.take(now)

    def _fault(self, chat: ChatRequest, repeat: int) -> str | None:
        options = self.options
        kind = chosen(
            options.faults,
            options.poison,
            prompt=chat.prompt,
            digest=chat.digest,
            repeat=repeat,
            seed=options.seed,
        )
        if kind is None and chat.extensions.strict and UNSAFE in chat.prompt:
            return "blocked"
        return fitting(kind, stream=chat.stream)

    async def _failed(self, asked: AcceptedRequest) -> SentResponse | None:
        """The response of a fault without a completion; server-side faults wait for the latency first."""
        kind = asked.kind or ""
        if kind == "hang":
            return await responses.silence(), "499"
        error = problem(kind, model=asked.chat.model, parent=asked.parent, retry_info=self.options.retry_info)
        if error is not None and error.http_status < 500:
            raise error
        if error is None and kind not in {*PAGES, "drop", "html200", "list200", "empty"}:
            return None
        await self._wait(asked)
        if error is not None:
            raise error
        match kind:
            case "drop":
                return responses.closed(asked.http), "dropped"
            case "html200":
                return responses.html(HTML_PAGE), "200"
            case "list200":
                return responses.json(exhausted(self.options.retry_info).body("list")), "200"
            case "empty":
                return responses.json(b""), "200"
        return _page(kind)

    async def _completed(self, asked: AcceptedRequest) -> SentResponse:
        chat, kind = asked.chat, asked.kind
        options = self.options
        found, reasoning = answers(chat, options.seed, options.field_errors, options.answer_key)
        tokens = counted(chat, found, reasoning, kind)
        content = completion(
            model=chat.model,
            ident=self.ident(asked.chat.digest, asked.repeat),
            created=int(time.time()),
            choices=choices_of(chat, found, reasoning, kind),
            tokens=tokens,
            traffic=asked.traffic,
        )
        content = damaged_body(kind, content, chat.digest)
        if chat.stream:
            return await self._streamed(asked, content, tokens)
        await self._wait(asked)
        body = dump(content)
        if kind == "truncated":
            return responses.json(body[: len(body) * 2 // 3]), "200"
        if kind == "partial":
            return await responses.half(asked.http, body), "dropped"
        self._bill(asked, content, tokens)
        return responses.json(body), "200"

    async def _streamed(self, asked: AcceptedRequest, content: JsonObject, tokens: TokenCounts) -> SentResponse:
        sent, kind = event_stream.events(content, fragments=asked.chat.extensions.fragments), asked.kind
        half = len(sent) // 2
        match kind:
            case "stream_cut" | "stream_stall":
                sent = sent[:half]
            case "stream_error" | "stream_error_object":
                error = unavailable().body("list" if kind == "stream_error" else "object")
                sent = [*sent[:half], b"data: " + error + b"\n\n"]
            case "truncated":
                sent = [*sent[:-1], sent[-1][: len(sent[-1]) * 2 // 3]]
            case _:
                sent.append(event_stream.DONE)
        seconds = self._latency(asked)
        gap = seconds * (1 - FIRST_CHUNK) / max(1, len(sent) - 1)
        response = await responses.stream(asked.http, sent, first=seconds * FIRST_CHUNK, gap=gap)
        if kind == "stream_stall":
            return await responses.silence(), "499"
        if kind == "stream_cut":
            return responses.cut(asked.http, response), "dropped"
        await response.write_eof()
        if kind not in {"stream_error", "stream_error_object", "truncated"}:
            self._bill(asked, content, tokens)
        return response, "200"

    def ident(self, digest: bytes, repeat: int) -> str:
        """The id of an answer: unique with `nonce`, else one of its messages and how often they came before."""
        if not self.options.nonce:
            return response_id(digest, repeat)
        self.nonces += 1
        return nonce_id(self.nonces)

    def _bill(self, asked: AcceptedRequest, content: JsonObject, tokens: TokenCounts) -> None:
        """Counts an answer that was sent completely."""
        choices = content.get("choices") or ()
        calls = sum(len(each.get("message", {}).get("tool_calls", ())) for each in choices)
        results = len(asked.chat.turns[-1]) if asked.chat.turns else 0
        self.bill(asked.chat.digest, tokens, content["id"], calls, results)

    def bill(self, digest: bytes, tokens: TokenCounts, ident: str, calls: int, results: int) -> None:
        """Counts an answer that is paid for; `calls` are its own, `results` those of tools in its request."""
        self.stats.bill(digest, tokens, tool_calls=calls, tool_results=results)
        if self.options.nonce:
            self.stats.given.append(Given(digest, ident, time.time_ns() // 1000))

    async def _wait(self, asked: AcceptedRequest) -> None:
        seconds = self._latency(asked)
        if seconds:
            await asyncio.sleep(seconds)

    def _latency(self, asked: AcceptedRequest) -> float:
        options = self.options
        seconds = options.latency
        if options.location_latency:
            seconds = options.location_latency.get(asked.location, seconds)
        if seconds and options.latency_sigma:
            seconds *= self.random.lognormvariate(0.0, options.latency_sigma)
        return seconds

    def _refusal(self, refusal: Problem, style: Literal["list", "object"]) -> web.Response:
        headers: dict[str, str] = {}
        if refusal.http_status in {429, 503} and self.options.retry_after is not None:
            headers["Retry-After"] = self.options.retry_after
        if refusal.http_status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="https://accounts.google.com/", error="invalid_token"'
        return responses.json(refusal.body(style), refusal.http_status, headers)


def _quota(options: Options) -> tuple[float | None, float, bool]:
    return options.quota_rps, options.quota_window_s, options.quota_fixed


def _location(parent: str) -> str:
    return parent.rpartition("/")[2]


def _page(kind: str) -> SentResponse:
    return responses.html(front_end_page(int(kind), PAGES[kind]), int(kind)), kind
