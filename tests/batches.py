"""A batch service in memory that outlives the runs that use it, with a real one's faults, and deaths on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from pipeline.data import Reply, Request, Usage
from pipeline.endpoint.batch.backend import BatchAnswer, BatchCounts, BatchJob, BatchLimits, BatchState
from pipeline.endpoint.connection import Connect, OpenEndpoint
from pipeline.execution.batch.settings import BatchSettings
from pipeline.execution.batch.stage import BatchStage
from pipeline.execution.finish import Summary, finish
from pipeline.execution.run import Run
from pipeline.faults import Broken, Fault, InvalidRow, Refused, Throttled
from tests import virtual
from tests.memory_store import Killed

ROW_FAULTS = ("transient", "permanent", "missing", "doubled", "disputed", "unknown", "keyless", "cut", "unfit", "empty")
"""What the service does to a row that has such a fault."""

INPUT_TOKENS, OUTPUT_TOKENS = 10, 5


@dataclass
class ServedJob:
    """A job that the service has."""

    handle: str
    name: str
    lines: list[dict[str, Any]]
    sha256: str
    state: BatchState = "waiting"
    looked: int = 0
    cancelled: bool = False


@dataclass
class BatchService:
    """The service: what it was sent, and what it does to rows and jobs."""

    faults: dict[int, str] = field(default_factory=dict)
    """By row: what happens to it in its first job. The next one answers it."""
    ends: Callable[[ServedJob], BatchState] = lambda _: "succeeded"
    looks: int = 1
    """How often a job is looked at before it has ended."""
    share: Callable[[ServedJob], float] = lambda _: 1.0
    """The share of a job's rows that it works on."""
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(1_000, 1_000_000))
    jobs: list[ServedJob] = field(default_factory=list)
    sent: dict[int, int] = field(default_factory=dict)
    """How often each row was submitted."""
    answered: dict[int, str] = field(default_factory=dict)
    """The text that each row was given, by the last job that answered it."""
    unsuited: frozenset[int] = frozenset()
    """Rows that do not go into a batch."""
    always: dict[int, str] = field(default_factory=dict)
    """By row: what happens to it in every job."""
    away: range = range(0)
    """The looks, counted over all jobs, that fail since the service cannot be used."""
    looks_made: int = 0
    deaf: bool = False
    """Whether a cancelled job goes on."""

    def create(self, name: str, content: bytes) -> ServedJob:
        lines = [json.loads(line) for line in content.splitlines()]
        for line in lines:
            ordinal = int(line["key"].removeprefix("r-"))
            self.sent[ordinal] = self.sent.get(ordinal, 0) + 1
        job = ServedJob(f"jobs/{len(self.jobs)}", name, lines, hashlib.sha256(content).hexdigest())
        self.jobs.append(job)
        return job

    def of(self, handle: str) -> ServedJob:
        return next(job for job in self.jobs if job.handle == handle)

    def look(self, job: ServedJob) -> None:
        job.looked += 1
        if job.state in ("waiting", "running"):
            job.state = "running"
            if job.cancelled and not self.deaf:
                job.state = "cancelled"
            elif job.looked >= self.looks:
                job.state = self.ends(job)

    def answers(self, job: ServedJob) -> list[BatchAnswer]:
        """In an order of its own; the same at every reading."""
        lines = job.lines[: round(len(job.lines) * self.share(job))]
        found = [answer for line in lines for answer in self._answers_to(line, job)]
        random.Random(job.name).shuffle(found)
        return found

    def _answers_to(self, line: dict[str, Any], job: ServedJob) -> list[BatchAnswer]:
        ordinal = int(line["key"].removeprefix("r-"))
        first = next(one for one in self.jobs if any(other["key"] == line["key"] for other in one.lines))
        kind = self.always.get(ordinal) or (self.faults.get(ordinal) if first is job else None)
        good = self._good(line, job, "stop")
        if kind == "missing":
            return []
        changed = {
            "transient": lambda: _failed(line, Throttled("RESOURCE_EXHAUSTED")),
            "permanent": lambda: _failed(line, Refused("blocked", http_status=400)),
            "unknown": lambda: replace(good, key="r-999999999"),
            "keyless": lambda: replace(good, key=None),
            "cut": lambda: self._good(line, job, "length"),
            "unfit": lambda: self._good(line, job, "stop", "unfit"),
            "empty": lambda: replace(good, body=json.dumps({"choices": [], "usage": _USAGE}).encode()),
        }
        again = {"doubled": good, "disputed": self._good(line, job, "stop", "another")}
        first_answer = changed[kind]() if kind in changed else good
        return [first_answer, again[kind]] if kind in again else [first_answer]

    def _good(self, line: dict[str, Any], job: ServedJob, reason: str, said: str = "") -> BatchAnswer:
        text = line["body"]["messages"][-1]["content"]
        ordinal = int(line["key"].removeprefix("r-"))
        nonce = f"nonce-{ordinal}-{hashlib.sha256((job.name + said).encode()).hexdigest()[:12]}"
        content = "no JSON" if said == "unfit" else json.dumps({"text": text, "nonce": nonce})
        if reason == "length":
            content = content[:5]
        message = {"role": "assistant", "content": content}
        body = {
            "choices": [{"index": 0, "finish_reason": reason, "message": message}],
            "model": "google/gemini-test",
            "usage": _USAGE,
        }
        raw = {"key": line["key"], "request": line["body"], "response": {"native": content}}
        return BatchAnswer(line["key"], json.dumps(body).encode(), None, json.dumps(raw).encode())


_USAGE = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
}


def _failed(line: dict[str, Any], fault: Fault) -> BatchAnswer:
    return BatchAnswer(line["key"], None, fault, b"{}")


class FakeBackend:
    """The service as one process sees it; the process dies at the n-th request, before or after it is carried out."""

    price_factor = 0.5
    traffic_type = "BATCH"

    def __init__(self, service: BatchService, *, dies_at: int | None = None, answers_lost: bool = False) -> None:
        self.service = service
        self.limits = service.limits
        self.requests: list[str] = []
        self._dies_at = dies_at
        self._answers_lost = answers_lost

    @property
    def dead(self) -> bool:
        return self._dies_at is not None and len(self.requests) >= self._dies_at

    def line(self, key: str, request: Request) -> bytes:
        if request.ordinal in self.service.unsuited:
            raise InvalidRow("it does not go into a batch")
        return json.dumps({"key": key, "body": dict(request.payload)}).encode() + b"\n"

    async def submit(self, name: str, input_file: Path, *, inputs_key: str) -> BatchJob:
        content = input_file.read_bytes()  # noqa: ASYNC240 - a few lines
        assert inputs_key.endswith("/input.jsonl")
        found = [job for job in self.service.jobs if job.name == name]
        if found:
            assert found[0].sha256 == hashlib.sha256(content).hexdigest(), "another input"
            return await self._job(f"adopt {name}", lambda: found[0])
        return await self._job(f"create {name}", lambda: self.service.create(name, content))

    async def find(self, name: str) -> BatchJob | None:
        found = [job for job in self.service.jobs if job.name == name]
        await self._request(f"find {name}", lambda: None)
        return _described(found[0]) if found else None

    async def get(self, handle: str) -> BatchJob:
        job = self.service.of(handle)

        def look() -> ServedJob:
            self.service.looks_made += 1
            if self.service.looks_made in self.service.away:
                raise Broken("no route to the service")
            self.service.look(job)
            return job

        return await self._job(f"get {handle}", look)

    async def cancel(self, handle: str) -> None:
        job = self.service.of(handle)

        def cancel() -> None:
            job.cancelled = True

        await self._request(f"cancel {handle}", cancel)

    async def results(self, job: BatchJob) -> AsyncIterator[BatchAnswer]:
        await self._request(f"results {job.handle}", lambda: None)
        for number, answer in enumerate(self.service.answers(self.service.of(job.handle))):
            if number % 5 == 4:
                await self._request(f"more results {job.handle}", lambda: None)
            yield answer

    async def _job(self, what: str, do: Callable[[], ServedJob]) -> BatchJob:
        found: list[ServedJob] = []
        await self._request(what, lambda: found.append(do()))
        return _described(found[0])

    async def _request(self, what: str, do: Callable[[], object]) -> None:
        await anyio.lowlevel.checkpoint()
        self.requests.append(what)
        before, at = len(self.requests), self._dies_at
        if at is not None and (before > at or (before == at and not self._answers_lost)):
            raise Killed(what)
        do()
        if self.dead:
            raise Killed(what)


def _described(job: ServedJob) -> BatchJob:
    counts = BatchCounts(succeeded=len(job.lines)) if job.state == "succeeded" else BatchCounts()
    message = "the model is not there" if job.state == "failed" else None
    return BatchJob(job.handle, job.name, job.state, counts, message)


@dataclass
class OnlineEndpoint:
    """The endpoint that the rest is asked of, and what it was asked."""

    asked: list[int] = field(default_factory=list)
    payloads: list[dict[str, Any]] = field(default_factory=list)

    def connect(self) -> Connect:
        @asynccontextmanager
        async def connect() -> AsyncIterator[Sequence[OpenEndpoint]]:
            yield [OpenEndpoint("online", 1.0, self._ask)]

        return connect

    async def _ask(self, request: Request) -> Reply:
        await anyio.lowlevel.checkpoint()
        self.asked.append(request.ordinal)
        self.payloads.append(dict(request.payload))
        text = next(one["content"] for one in request.payload["messages"] if one["role"] == "user")
        nonce = f"nonce-{request.ordinal}-{os.urandom(6).hex()}"
        message = {"role": "assistant", "content": json.dumps({"text": text, "nonce": nonce})}
        body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "model": "google/gemini-test"}
        return Reply(json.dumps(body).encode(), usage=Usage(INPUT_TOKENS, OUTPUT_TOKENS))


class Time:
    """Unix time for records."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def carried_out(
    run: Run,
    backend: FakeBackend,
    endpoint: OnlineEndpoint,
    settings: BatchSettings,
    now: Callable[[], float],
    *,
    in_virtual_time: bool = False,
) -> Summary:
    """The run by batch and then online, to its end."""

    async def work() -> None:
        if await BatchStage(run, backend, settings, now).carry_out():
            await run.execute(endpoint.connect())

    if in_virtual_time:
        virtual.run(work)
    else:
        anyio.run(work)
    return finish([run])[0]
