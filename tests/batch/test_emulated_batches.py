"""The backends against the emulator: whole jobs, its own reading of our lines, and faults that it makes on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Request
from pipeline.emulator import Options
from pipeline.emulator.protocol.native import read_native
from pipeline.emulator.protocol.request import ChatRequest, read_request
from pipeline.emulator.vertex import Vertex, emulated
from pipeline.endpoint.batch.api import BatchApi
from pipeline.endpoint.batch.backend import BatchAnswer, BatchBackend, BatchJob
from pipeline.endpoint.batch.native_request import native_request
from pipeline.endpoint.batch.openai_backend import OpenAIBatchBackend
from pipeline.endpoint.batch.replies import reply_of
from pipeline.endpoint.batch.selection import check_place, open_batches
from pipeline.endpoint.connection import Connection, access
from pipeline.endpoint.store_access import store_access
from pipeline.endpoint.token_source import ApiKey
from pipeline.endpoint.transport import Transport
from pipeline.endpoint.wire import read_completion
from pipeline.faults import Broken, Throttled, Unavailable
from pipeline.store.address import Address
from tests.batch.test_native_request import options
from tests.batch.vertex_server import Pauses

pytestmark = pytest.mark.anyio

HOUR = 3600.0
NAME = "pipeline-run-1-0"
KEY = "_run/batch/1-0/in.jsonl"
PLACE = Address("gs", "bucket", "out")
GEMINI = "google/gemini-3.5-flash"
LLAMA = "meta/llama-3.3-70b-instruct-maas"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def requests_of(model: str, count: int) -> list[Request]:
    """Rows with a system message and a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    return [
        Request(
            number,
            {
                "model": model,
                "messages": [
                    {"role": "system", "content": "Be exact."},
                    {"role": "user", "content": f"Order {number} was placed on 2024-05-{number % 28 + 1:02}."},
                ],
                "max_tokens": 200,
                "response_format": form,
            },
        )
        for number in range(count)
    ]


async def spool(backend: BatchBackend, requests: Sequence[Request], folder: Path) -> Path:
    path = folder / "in.jsonl"
    lines = [backend.line(f"r-{request.ordinal}", request) for request in requests]
    await anyio.Path(path).write_bytes(b"".join(lines))
    return path


async def all_of(backend: BatchBackend, job: BatchJob) -> list[BatchAnswer]:
    return [answer async for answer in backend.results(job)]


@asynccontextmanager
async def vertex_batches(
    patch: pytest.MonkeyPatch, model: str, **given: Any
) -> AsyncIterator[tuple[BatchBackend, Vertex, Pauses]]:
    """The backend that a run would open, and an emulator whose jobs take an hour that the test lets pass."""
    pauses = Pauses()
    wanted: dict[str, Any] = {"buckets": ("bucket",), "batch_clock": "manual", "batch_delay": HOUR, **given}
    async with emulated(Options(**wanted)) as vertex:
        patch.setenv("STORAGE_EMULATOR_HOST", vertex.address.origin)
        credentials = Path(vertex.address.credentials_file)
        connection = Connection(base_urls=[vertex.address.base_url], credentials=credentials)
        check_place(connection, model, PLACE)
        with store_access(credentials) as stores:
            opening = open_batches(access(connection), model, place=PLACE, stores=stores, sleep=pauses)
            async with opening as backend:
                yield backend, vertex, pauses


@asynccontextmanager
async def openai_batches(**given: Any) -> AsyncIterator[tuple[BatchBackend, Vertex, Pauses]]:
    pauses = Pauses()
    wanted: dict[str, Any] = {"batch_clock": "manual", "batch_delay": HOUR, **given}
    async with emulated(Options(**wanted)) as vertex:
        base_url = f"{vertex.address.origin}/v1"
        async with Transport(base_url, 4) as transport:
            api = BatchApi(base_url, transport, ApiKey("sk-emulated"), pauses)
            yield OpenAIBatchBackend(api, model=GEMINI), vertex, pauses


# Whole jobs.


@pytest.mark.parametrize("model", [GEMINI, LLAMA])
async def test_a_job_gives_every_row_the_answer_that_it_gets_online(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    requests = requests_of(model, 20)
    async with vertex_batches(monkeypatch, model, batch_files=3, batch_echo="labels") as (backend, vertex, _):
        job = await backend.submit(NAME, await spool(backend, requests, tmp_path), inputs_key=KEY)
        assert (job.name, job.state) == (NAME, "waiting")
        assert await backend.submit(NAME, tmp_path / "in.jsonl", inputs_key=KEY) == job
        assert await backend.find(NAME) == job
        await vertex.control(batch_advance=HOUR)
        job = await backend.get(job.handle)
        assert (job.state, job.counts.succeeded, job.counts.failed, job.counts.incomplete) == ("succeeded", 20, 0, 0)
        answers = {answer.key: reply_of(answer, finished_at=0) for answer in await all_of(backend, job)}
        assert answers.keys() == {f"r-{number}" for number in range(20)}
        for request in requests:
            batch, online = answers[f"r-{request.ordinal}"], await vertex.ask(dict(request.payload))
            said = read_completion(orjson.dumps(online.json()))
            assert read_completion(batch.body).answers == said.answers
            assert (batch.usage, batch.model, batch.traffic_type) == (said.usage, said.model, "BATCH")


async def test_files_and_batches_give_every_row_its_answer(tmp_path: Path) -> None:
    async with openai_batches() as (backend, vertex, _):
        requests = requests_of(GEMINI, 20)
        job = await backend.submit(NAME, await spool(backend, requests, tmp_path), inputs_key=KEY)
        assert not job.ended
        assert (await backend.submit(NAME, tmp_path / "in.jsonl", inputs_key=KEY)).handle == job.handle
        assert await all_of(backend, job) == []
        await vertex.control(batch_advance=HOUR)
        job = await backend.get(job.handle)
        assert (job.state, job.counts.succeeded) == ("succeeded", 20)
        replies = [reply_of(answer, finished_at=0) for answer in await all_of(backend, job)]
        assert len(replies) == 20
        assert {reply.traffic_type for reply in replies} == {"BATCH"}


async def test_a_cancelled_job_ends_and_what_it_answered_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with vertex_batches(monkeypatch, GEMINI, batch_files=4) as (backend, vertex, _):
        path = await spool(backend, requests_of(GEMINI, 40), tmp_path)
        job = await backend.submit(NAME, path, inputs_key=KEY)
        await vertex.control(batch_advance=HOUR * 0.7)
        assert (await backend.get(job.handle)).state == "running"
        await backend.cancel(job.handle)
        await vertex.control(batch_advance=HOUR)
        job = await backend.get(job.handle)
        assert job.state == "cancelled"
        assert 0 < len(await all_of(backend, job)) < 40
        await backend.cancel(job.handle)


# Faults.


async def test_a_fault_inside_of_the_block_leaves_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Broken, match="not the name"):
        async with vertex_batches(monkeypatch, GEMINI) as (backend, _, _):
            await backend.get("nothing")


async def test_each_fault_of_a_row_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = ("failed", "missing", "doubled", "unknown_key", "no_candidates", "blocked", "cut")
    faults = {f"row_{kind}": 0.1 for kind in kinds}
    async with vertex_batches(monkeypatch, GEMINI, batch_faults=faults, batch_echo="both") as (backend, vertex, _):
        path = await spool(backend, requests_of(GEMINI, 200), tmp_path)
        job = await backend.submit(NAME, path, inputs_key=KEY)
        await vertex.control(batch_advance=HOUR)
        answers = await all_of(backend, await backend.get(job.handle))
    keys = Counter(answer.key for answer in answers)
    sent = {f"r-{number}" for number in range(200)}
    assert keys.keys() - sent
    assert sent - keys.keys()
    assert 2 in keys.values()
    found: Counter[str] = Counter()
    for answer in answers:
        try:
            reply = reply_of(answer, finished_at=0)
        except Throttled:
            found["failed"] += 1
        except Unavailable as fault:
            found["no_candidates" if fault.reply is not None else "unpaid"] += 1
        else:
            completion = read_completion(reply.body)
            found["blocked"] += completion.blocked is not None
            found["cut"] += any(each.finish_reason == "length" for each in completion.answers)
    assert found.keys() == {"failed", "no_candidates", "blocked", "cut"}
    assert min(found.values()) > 5


async def test_a_lost_creation_is_found_in_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faults = {"create_lost": 1.0, "get_429": 0.3}
    async with vertex_batches(monkeypatch, GEMINI, batch_faults=faults) as (backend, vertex, pauses):
        path = await spool(backend, requests_of(GEMINI, 2), tmp_path)
        jobs = [await backend.submit(f"{NAME}-{n}", path, inputs_key=f"{n}/in.jsonl") for n in range(3)]
        assert len({job.handle for job in jobs}) == 3
        assert 10.0 in pauses.slept
        await vertex.control(batch_faults={})
        again = [await backend.submit(f"{NAME}-{n}", path, inputs_key=f"{n}/in.jsonl") for n in range(3)]
        assert [job.handle for job in again] == [job.handle for job in jobs]


async def test_a_lost_creation_of_openais_is_found_in_the_list(tmp_path: Path) -> None:
    async with openai_batches(batch_faults={"create_lost": 1.0}) as (backend, _, pauses):
        path = await spool(backend, requests_of(GEMINI, 2), tmp_path)
        first = await backend.submit(NAME, path, inputs_key=KEY)
        assert (await backend.submit(NAME, path, inputs_key=KEY)).handle == first.handle
        assert pauses.slept == [10.0]


# The emulator's own reading.

MEANING = ("prompt", "digest", "media", "n", "stop", "max_tokens", "varied", "thinking", "modalities", "functions")


def meaning_of(request: ChatRequest) -> dict[str, Any]:
    found = {name: getattr(request, name) for name in MEANING}
    form = dict(request.response_format or {})
    return {**found, "schema": (form.get("json_schema") or {}).get("schema"), "is_json": bool(form)}


@given(options, st.sampled_from(["google/gemini-2.5-pro", "google/gemini-3.5-flash"]))
def test_a_native_request_asks_what_the_compatible_one_does(payload: dict[str, Any], model: str) -> None:
    """By the emulator's two readers, which share no code with the translation."""
    given_payload = {**payload, "model": model}
    native = orjson.loads(orjson.dumps(native_request(given_payload, {})))
    assert meaning_of(read_native(native, model)) == meaning_of(
        read_request(orjson.dumps(given_payload), default_model=None)
    )
