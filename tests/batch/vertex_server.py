"""A scripted server of batch jobs: Vertex AI's `batchPredictionJobs`, with every answer in the test's hands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from pipeline.emulator.bucket.objects import Buckets
from pipeline.endpoint.batch.api import BatchApi
from pipeline.endpoint.batch.selection import lines_of
from pipeline.endpoint.batch.vertex_backend import VertexBatchBackend
from pipeline.endpoint.token_source import ApiKey
from pipeline.endpoint.transport import Transport
from pipeline.store.address import Address
from pipeline.store.object_store import ObjectFile, ObjectStore
from tests.memory_store import BUCKET, MemoryStore
from tests.servers import Answer, Call, Raw, Says, scripted

PARENT = "projects/p/locations/global"
MODEL = "google/gemini-3.5-flash"
TOKEN = "the-secret-token"

Fault = Callable[[Call], Says | None]


class JobServer:
    """The jobs that were created, and what goes wrong: `fault` answers in place of the server, or None."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str]] = []
        self.fault: Fault = lambda _: None
        self.filters = True

    def script(self, call: Call) -> Says:
        parts = urlsplit(call.path)
        self.calls.append((call.method, parts.path))
        assert call.headers["Authorization"] == f"Bearer {TOKEN}"
        answer = self._answer(call, parts.path, parse_qs(parts.query))
        return self.fault(call) or answer

    def _answer(self, call: Call, path: str, query: dict[str, list[str]]) -> Says:
        if path.endswith(":cancel"):
            job = self._job(path.removesuffix(":cancel"))
            job["state"] = job["state"].replace("PENDING", "CANCELLING")
            return Answer(b"")
        if call.method == "POST":
            name = f"{PARENT}/batchPredictionJobs/{len(self.jobs)}"
            job = {
                **call.json(),
                "name": name,
                "state": "JOB_STATE_PENDING",
                "createTime": f"2026-01-0{len(self.jobs) + 1}",
            }
            self.jobs.append(job)
            return _said(job)
        if path.endswith("/batchPredictionJobs"):
            return self._page(query)
        found = [job for job in self.jobs if path.endswith(job["name"])]
        return _said(found[0]) if found else Answer(b'{"error": {"code": 404, "message": "None."}}', 404)

    def _page(self, query: dict[str, list[str]]) -> Says:
        """One job a page, newest first, as the real list."""
        jobs = [
            job for job in reversed(self.jobs) if not self.filters or f'"{job["displayName"]}"' in query["filter"][0]
        ]
        start = int(query.get("pageToken", ["0"])[0])
        more = {"nextPageToken": str(start + 1)} if start + 1 < len(jobs) else {}
        return _said({"batchPredictionJobs": jobs[start : start + 1], **more})

    def _job(self, path: str) -> dict[str, Any]:
        return next(job for job in self.jobs if path.endswith(job["name"]))

    @property
    def creations(self) -> int:
        return sum(method == "POST" and not path.endswith(":cancel") for method, path in self.calls)


def once(fault: Says, matches: Callable[[Call], bool], times: int = 1) -> Fault:
    """A fault for the first requests that match."""
    left = [times]

    def said(call: Call) -> Says | None:
        if not left[0] or not matches(call):
            return None
        left[0] -= 1
        return fault

    return said


def is_creation(call: Call) -> bool:
    return call.method == "POST" and call.path.endswith("/batchPredictionJobs")


LOST = Raw()
"""The connection is closed, after the server did what it was asked for."""


def _said(document: dict[str, Any]) -> Answer:
    return Answer(json.dumps(document).encode())


class BatchStore(MemoryStore):
    """The bucket, whose objects are files too."""

    def reader(self, key: str, version: str, size: int, *, ahead: int = 0) -> ObjectFile:
        return ObjectFile(cast("ObjectStore", self), key, version, size, ahead=ahead)

    def address_of(self, key: str) -> str:
        return f"gs://{BUCKET}/{key}"


class Pauses:
    """The pauses that were slept, in seconds; nobody waits for them."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


@asynccontextmanager
async def vertex_backend(
    server: JobServer, buckets: Buckets, *, model: str = MODEL
) -> AsyncIterator[tuple[VertexBatchBackend, Pauses]]:
    """A backend whose server is scripted, whose bucket is in memory, and that never waits."""
    pauses = Pauses()
    async with scripted(server.script) as running, Transport(running.origin, 4) as transport:
        backend = VertexBatchBackend(
            BatchApi(f"{running.origin}/v1", transport, ApiKey(TOKEN), pauses),
            cast("ObjectStore", BatchStore(buckets)),
            Address("gs", BUCKET, "out"),
            parent=PARENT,
            model=model,
            lines=lines_of(model, {}),
        )
        yield backend, pauses
