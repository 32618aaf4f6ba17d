"""What the tests of batch prediction send and read."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.emulator import Options
from pipeline.emulator.vertex import ReceivedResponse, Vertex, emulated
from tests.emulator.requests import Json

HOUR = 3600.0
MODEL = "publishers/google/models/gemini-test"


def line(number: int, text: str | None = None, **more: Any) -> Json:
    """A row of Gemini's own form, with both ids."""
    said = f"Order {number} was placed on 2024-05-{number % 28 + 1:02}." if text is None else text
    contents = [{"role": "user", "parts": [{"text": said}]}]
    return {"key": f"r-{number}", "request": {"contents": contents, "labels": {"row": f"r-{number}"}, **more}}


def jsonl(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(data: bytes) -> list[Json]:
    return [json.loads(each) for each in data.splitlines()]


def job_body(name: str = "job", **changes: Any) -> Json:
    return {
        "displayName": name,
        "model": MODEL,
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://bucket/in.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://bucket/out/"}},
        **changes,
    }


@dataclass(frozen=True)
class BatchClient:
    """An emulator with a bucket, a token, and a clock of jobs that the test moves."""

    vertex: Vertex
    token: str
    parent: str = "/v1/projects/p/locations/global/batchPredictionJobs"

    async def send(self, method: str, path: str, **arguments: Any) -> ReceivedResponse:
        headers = {"Authorization": f"Bearer {self.token}", **arguments.pop("headers", {})}
        return await self.vertex.request(method, self.vertex.address.origin + path, headers=headers, **arguments)

    async def put(self, rows: Sequence[Any] | bytes, key: str = "in.jsonl") -> None:
        data = rows if isinstance(rows, bytes) else jsonl(rows)
        assert (await self.send("PUT", f"/bucket/{key}", data=data)).status == 200

    async def create(self, **changes: Any) -> Json:
        answered = await self.send("POST", self.parent, json=job_body(**changes))
        assert answered.status == 200, answered.body
        return dict(answered.json())

    async def job(self, created: Mapping[str, Any]) -> Json:
        answered = await self.send("GET", f"/v1/{created['name']}")
        assert answered.status == 200, answered.body
        return dict(answered.json())

    async def after(self, seconds: float, created: Mapping[str, Any]) -> Json:
        """The job, some seconds of the jobs' clock later."""
        await self.vertex.control(batch_advance=seconds)
        return await self.job(created)

    async def files(self, prefix: str = "out/") -> dict[str, bytes]:
        """The objects below a prefix."""
        listed = await self.send("GET", f"/bucket?list-type=2&prefix={prefix}")
        keys = re.findall(r"<Key>(.*?)</Key>", listed.body.decode())
        return {key: (await self.send("GET", f"/bucket/{key}")).body for key in keys}

    async def rows(self) -> list[Json]:
        """All lines of all output objects."""
        return [row for data in (await self.files()).values() for row in read(data)]

    async def done(self, rows: Sequence[Any] | bytes, **changes: Any) -> tuple[Json, list[Json]]:
        """A job over these rows at its end, and the lines of its output."""
        await self.put(rows)
        job = await self.after(HOUR, await self.create(**changes))
        return job, await self.rows()


@asynccontextmanager
async def batches(**options: Any) -> AsyncIterator[BatchClient]:
    """A client of an emulator whose jobs take an hour of a clock that the test moves."""
    wanted: Json = {"buckets": ("bucket",), "batch_clock": "manual", "batch_delay": HOUR, **options}
    async with emulated(Options(**wanted)) as vertex:
        yield BatchClient(vertex, await vertex.token())


def text_of(row: Mapping[str, Any]) -> str:
    """What the first candidate says."""
    return "".join(part["text"] for part in row["response"]["candidates"][0]["content"]["parts"])
