"""The HTTP server: one loopback port for the endpoint, the token servers and the counters."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from pipeline.emulator.batch.clock import JobClock
from pipeline.emulator.batch.openai_batches import CHAT_URL, OPENAI, OpenAIBatches
from pipeline.emulator.batch.prediction_jobs import PREDICTION_JOBS, PredictionJobs
from pipeline.emulator.batch.work import WorkQueue
from pipeline.emulator.bucket.service import BucketService
from pipeline.emulator.options import EmulatorAddress, Options, parse_schedule
from pipeline.emulator.protocol.wire import dump, front_end_page
from pipeline.emulator.server import responses
from pipeline.emulator.server.chat import OPENAI_SERVER, Chat
from pipeline.emulator.server.credentials import AccessTokens, ServiceAccount, write_credentials
from pipeline.emulator.server.stats import Stats
from pipeline.emulator.server.token_server import FLAVOR, METADATA, MODES, TokenServer

CHAT = re.compile(
    r"/v1(?:beta1)?/(?P<parent>projects/[^/]+/locations/[^/]+)/endpoints/(?P<endpoint>openapi|\d+)/chat/completions"
)
HOST = "127.0.0.1"
LARGEST_BODY = 20_000_000  # bytes; the only documented limit for inline data
GRACE = 0.05  # seconds to finish responses when the server stops
LISTS = frozenset({"models", "unknown_models", "down_locations"})
NO_OPTIONS = frozenset({"token_server", "token_delay", "revoke", "batch_advance"})
FIXED = frozenset({"port", "project", "seed", "directory", "buckets"})

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Emulator:
    """Routes requests to their handlers."""

    chat: Chat
    token_server: TokenServer
    storage: BucketService
    queue: WorkQueue
    prediction_jobs: PredictionJobs
    batches: OpenAIBatches

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request."""
        method, path = request.method, request.path
        if method == "POST" and (match := CHAT.fullmatch(path)):
            return await self.chat.complete(request, match["parent"], match["endpoint"])
        if match := PREDICTION_JOBS.fullmatch(path):
            return await self.prediction_jobs.handle(request, match)
        if match := OPENAI.fullmatch(path):
            return await self.batches.handle(request, match)
        if method == "POST" and path == CHAT_URL:
            parent = f"projects/{self.chat.options.project}/locations/global"
            return await self.chat.complete(request, parent, OPENAI_SERVER)
        if method == "GET" and path.startswith(METADATA):
            return await self.token_server.metadata(request)
        route = ROUTES.get((method, path))
        if route is None and self.chat.options.buckets:
            return await self.storage.handle(request)
        return await route(self, request) if route else responses.html(front_end_page(404, "Not Found"), 404)

    async def token(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /token`."""
        return await self.token_server.token(request)

    async def root(self, _: web.BaseRequest) -> web.StreamResponse:
        """`GET /`: google-auth recognises a metadata server by the header."""
        return responses.plain("A simulated Vertex AI: nothing here is real.\n", FLAVOR)

    async def stats(self, _: web.BaseRequest) -> web.StreamResponse:
        """`GET /stats`."""
        return responses.json(dump(self._stats()))

    async def prompts(self, _: web.BaseRequest) -> web.StreamResponse:
        """`GET /stats/prompts`: how often each prompt was answered, by its digest."""
        answered = self.chat.stats.answered.items()
        return responses.json(dump({digest.hex(): count for digest, count in answered}))

    async def answers(self, _: web.BaseRequest) -> web.StreamResponse:
        """`GET /stats/answers`: the answers of an emulator with unique ids, in the order they were sent."""
        given = self.chat.stats.given
        return responses.json(dump([{"prompt": each.prompt.hex(), "id": each.ident, "at": each.at} for each in given]))

    async def reset(self, _: web.BaseRequest) -> web.StreamResponse:
        """`POST /stats/reset`: resets the counters."""
        self.chat.stats = Stats(in_flight=self.chat.stats.in_flight)
        self.chat.tokens.reset_counters()
        self.storage.requests.clear()
        self.prediction_jobs.requests.clear()
        self.batches.requests.clear()
        return responses.json(dump(self._stats()))

    async def control(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /control`: changes options and the token server; all changes or, with 400 and the reason, none."""
        try:
            wish = orjson.loads(await request.read())
            options, mode, delay = self._wished(wish)
            self.queue.clock.advance(wish.get("batch_advance", 0))
        except (TypeError, ValueError, AttributeError) as error:
            return responses.json(dump({"error": str(error)}), 400)
        self.chat.adopt(options)
        self.queue.clock.manual = options.batch_clock == "manual"
        if "batch_advance" in wish:
            await self.queue.settle()
        self.token_server.mode, self.token_server.delay = mode, delay
        if wish.get("revoke"):
            self.chat.tokens.revoke()
        shown = {name: value for name, value in asdict(options).items() if name != "directory"}
        return responses.json(dump({**shown, "token_server": mode, "token_delay": delay}))

    def _stats(self) -> dict[str, Any]:
        tokens = self.chat.tokens
        storage = {"bucket_requests": dict(sorted(self.storage.requests.items()))} if self.chat.options.buckets else {}
        jobs = {
            "batch_jobs": {**self.prediction_jobs.states(), **self.batches.states()},
            "batch_requests": dict(sorted((self.prediction_jobs.requests + self.batches.requests).items())),
        }
        return {
            **self.chat.stats.as_dict(),
            **storage,
            **(jobs if jobs["batch_requests"] or jobs["batch_jobs"] else {}),
            "token_refreshes": tokens.refreshes,
            "tokens_expired": tokens.expired(),
        }

    def _wished(self, wish: Mapping[str, Any]) -> tuple[Options, str, float]:
        rest = {name: value for name, value in wish.items() if name not in NO_OPTIONS}
        if fixed := FIXED.intersection(rest):
            raise ValueError(f"cannot be changed while the emulator runs: {', '.join(sorted(fixed))}")
        for name in LISTS.intersection(rest):
            if isinstance(rest[name], str):
                raise TypeError(f"{name} is a list, not a text")
            rest[name] = tuple(rest[name])
        schedule = rest.get("capacity_schedule")
        if schedule is not None:
            written = isinstance(schedule, str)
            rest["capacity_schedule"] = parse_schedule(schedule) if written else tuple((t, r) for t, r in schedule)
        mode = wish.get("token_server", self.token_server.mode)
        if mode not in MODES:
            raise ValueError(f"token_server is one of {', '.join(MODES)}, not {mode!r}")
        return replace(self.chat.options, **rest), mode, float(wish.get("token_delay", self.token_server.delay))


ROUTES: Mapping[tuple[str, str], Callable[[Emulator, web.BaseRequest], Awaitable[web.StreamResponse]]] = {
    ("POST", "/token"): Emulator.token,
    ("GET", "/"): Emulator.root,
    ("GET", "/stats"): Emulator.stats,
    ("GET", "/stats/prompts"): Emulator.prompts,
    ("GET", "/stats/answers"): Emulator.answers,
    ("POST", "/stats/reset"): Emulator.reset,
    ("POST", "/control"): Emulator.control,
}


async def run(
    options: Options,
    announce: Callable[[EmulatorAddress], None],
    stop: asyncio.Event,
    account: ServiceAccount | None = None,
) -> None:
    """See `pipeline.emulator.serve`. Without an account a new one is created."""
    if account is None:
        account = await asyncio.to_thread(ServiceAccount.generate, options.project)
    tokens = AccessTokens(options.token_life)
    chat = Chat(options, tokens)
    emulator = _emulator(chat, TokenServer(account, tokens))
    directory = options.directory or Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="vertex-emulator-"))
    runner = _runner(emulator.handle)
    await runner.setup()
    working = asyncio.create_task(emulator.queue.run())
    try:
        await web.TCPSite(runner, HOST, options.port, backlog=4096).start()
        port = runner.addresses[0][1]
        files = await asyncio.to_thread(write_credentials, directory, account, f"http://{HOST}:{port}/token")
        announce(_address(options, port, files))
        await stop.wait()
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        await runner.cleanup()
        if options.directory is None:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _emulator(chat: Chat, token_server: TokenServer) -> Emulator:
    storage = BucketService(chat.tokens, lambda: chat.options)
    queue = WorkQueue(JobClock(manual=chat.options.batch_clock == "manual"))
    return Emulator(
        chat, token_server, storage, queue, PredictionJobs(chat, storage.buckets, queue), OpenAIBatches(chat, queue)
    )


def _runner(handler: Handler) -> web.ServerRunner:
    loop = asyncio.get_running_loop()

    def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=LARGEST_BODY)

    server = web.Server(handler, request_factory=make_request, handler_cancellation=True, access_log=None)
    return web.ServerRunner(server, shutdown_timeout=GRACE)


def _address(options: Options, port: int, files: tuple[Path, Path]) -> EmulatorAddress:
    origin = f"http://{HOST}:{port}"
    return EmulatorAddress(
        base_url=f"{origin}/v1/projects/{options.project}/locations/global/endpoints/openapi",
        origin=origin,
        token_uri=f"{origin}/token",
        metadata_host=f"{HOST}:{port}",
        stats_url=f"{origin}/stats",
        credentials_file=str(files[0]),
        authorized_user_file=str(files[1]),
        project=options.project,
    )
