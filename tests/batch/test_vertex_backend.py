"""Batch jobs of Vertex AI: submitted once whatever gets lost, found again, and read without belief."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import Request
from pipeline.emulator.bucket.objects import Buckets
from pipeline.endpoint.batch.backend import BatchAnswer, BatchCounts, BatchJob
from pipeline.endpoint.batch.object_lines import MOST_LINE, LineSplitter
from pipeline.endpoint.batch.vertex_backend import VertexBatchBackend, model_resource
from pipeline.faults import Broken, Fault, InvalidRow, ProviderUnusable
from tests.batch.test_native_request import json_values
from tests.batch.vertex_server import LOST, MODEL, PARENT, TOKEN, JobServer, is_creation, once, vertex_backend
from tests.memory_store import BUCKET
from tests.servers import Answer, error

pytestmark = pytest.mark.anyio

NAME = "pipeline-run-1-0"
KEY = "_run/batch/1-0/in.jsonl"
ROWS = b'{"key": "r-0"}\n'
REQUEST = Request(0, {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]})


@pytest.fixture
def buckets() -> Buckets:
    return Buckets([BUCKET])


@pytest.fixture
def server() -> JobServer:
    return JobServer()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(ROWS)
    return path


async def all_of(backend: VertexBatchBackend, job: BatchJob) -> list[BatchAnswer]:
    return [answer async for answer in backend.results(job)]


# Submission.


async def test_a_job_reads_the_rows_from_the_bucket_and_writes_beside_them(
    server: JobServer, buckets: Buckets, rows: Path
) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        job = await backend.submit(NAME, rows, inputs_key=KEY)
    assert (job.name, job.state, job.ended) == (NAME, "waiting", False)
    [created] = server.jobs
    assert created["model"] == "publishers/google/models/gemini-3.5-flash"
    assert created["inputConfig"] == {"instancesFormat": "jsonl", "gcsSource": {"uris": [f"gs://{BUCKET}/out/{KEY}"]}}
    prefix = created["outputConfig"]["gcsDestination"]["outputUriPrefix"]
    assert prefix == f"gs://{BUCKET}/out/_run/batch/1-0/answers/"
    assert buckets.get(BUCKET, f"out/{KEY}").data == ROWS


async def test_the_same_submission_finds_its_job(server: JobServer, buckets: Buckets, rows: Path) -> None:
    server.filters = False  # and other jobs are in the list, whose names begin alike
    async with vertex_backend(server, buckets) as (backend, _):
        await backend.submit(f"{NAME}0", rows, inputs_key="other/in.jsonl")
        jobs = [await backend.submit(NAME, rows, inputs_key=KEY) for _ in range(3)]
        assert await backend.find(NAME) == jobs[0]
        assert await backend.find("pipeline-run-1") is None
    assert {job.handle for job in jobs} == {f"{PARENT}/batchPredictionJobs/1"}
    assert server.creations == 2


@pytest.mark.parametrize("times", [1, 3])
async def test_no_lost_answer_makes_a_second_job(server: JobServer, buckets: Buckets, rows: Path, times: int) -> None:
    server.fault = once(LOST, is_creation, times)
    async with vertex_backend(server, buckets) as (backend, pauses):
        job = await backend.submit(NAME, rows, inputs_key=KEY)
    assert job.handle.endswith("/0")
    assert len(server.jobs) == 1
    assert pauses.slept == [10.0]  # the list is not asked at once: it may lag behind


async def test_what_fails_in_passing_is_repeated_and_then_said(server: JobServer, buckets: Buckets, rows: Path) -> None:
    server.fault = once(error(429, "RESOURCE_EXHAUSTED", **{"Retry-After": "30"}), lambda call: call.method == "GET", 2)
    async with vertex_backend(server, buckets) as (backend, pauses):
        await backend.submit(NAME, rows, inputs_key=KEY)
        assert pauses.slept == [30.0, 30.0]
        server.fault = lambda _: error(503, "UNAVAILABLE", f"overloaded, Bearer {TOKEN}")
        with pytest.raises(Broken, match=r"503 UNAVAILABLE: overloaded.*run again") as fault:
            await backend.get(server.jobs[0]["name"])
    assert TOKEN not in fault.value.message
    assert len(pauses.slept) == 8


async def test_a_refused_job_says_why(server: JobServer, buckets: Buckets, rows: Path) -> None:
    server.fault = once(error(400, "INVALID_ARGUMENT", "no such model"), is_creation)
    async with vertex_backend(server, buckets) as (backend, _):
        with pytest.raises(ProviderUnusable, match=f"the batch {NAME} was refused: .*no such model"):
            await backend.submit(NAME, rows, inputs_key=KEY)


async def test_another_job_of_the_name_is_not_taken(server: JobServer, buckets: Buckets, rows: Path) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        await backend.submit(NAME, rows, inputs_key="elsewhere/in.jsonl")
        with pytest.raises(Broken, match="another input or output"):
            await backend.submit(NAME, rows, inputs_key=KEY)


async def test_an_input_that_is_there_must_be_the_same(
    server: JobServer, buckets: Buckets, rows: Path, tmp_path: Path
) -> None:
    others = await anyio.Path(tmp_path / "others.jsonl").open("wb")
    async with others:
        await others.write(ROWS.replace(b"0", b"1"))
    async with vertex_backend(server, buckets) as (backend, _):
        await backend.submit(NAME, rows, inputs_key=KEY)
        server.jobs.clear()
        assert (await backend.submit(NAME, rows, inputs_key=KEY)).name == NAME
        server.jobs.clear()
        with pytest.raises(Broken, match="exists with other rows"):
            await backend.submit(NAME, tmp_path / "others.jsonl", inputs_key=KEY)


async def test_a_row_of_another_model_is_refused(server: JobServer, buckets: Buckets) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        assert b'"key":"r-0"' in backend.line("r-0", REQUEST)
        with pytest.raises(InvalidRow, match=r"--model"):
            backend.line("r-0", Request(0, {**REQUEST.payload, "model": "google/other"}))


async def test_open_models_take_lines_of_openais_form(server: JobServer, buckets: Buckets, rows: Path) -> None:
    model = "meta/llama-3.3-70b-instruct-maas"
    request = Request(0, {**REQUEST.payload, "model": model, "stream": True})
    async with vertex_backend(server, buckets, model=model) as (backend, _):
        await backend.submit(NAME, rows, inputs_key=KEY)
        assert json.loads(backend.line("r-0", request)) == {
            "custom_id": "r-0",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "Hi"}]},
        }
    assert server.jobs[0]["model"] == "publishers/meta/models/llama-3.3-70b-instruct-maas"
    assert model_resource("projects/p/locations/l/models/7") == "projects/p/locations/l/models/7"


# Jobs.


@pytest.mark.parametrize(
    ("state", "known"),
    [
        ("JOB_STATE_QUEUED", "waiting"),
        ("JOB_STATE_PAUSED", "waiting"),
        ("JOB_STATE_OF_THE_FUTURE", "waiting"),
        (7, "waiting"),
        ("JOB_STATE_RUNNING", "running"),
        ("JOB_STATE_CANCELLING", "running"),
        ("JOB_STATE_SUCCEEDED", "succeeded"),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", "partial"),
        ("JOB_STATE_FAILED", "failed"),
        ("JOB_STATE_CANCELLED", "cancelled"),
        ("JOB_STATE_EXPIRED", "expired"),
    ],
)
async def test_a_job_has_its_state_counts_and_error(
    server: JobServer, buckets: Buckets, rows: Path, state: Any, known: str
) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        handle = (await backend.submit(NAME, rows, inputs_key=KEY)).handle
        server.jobs[0] |= {
            "state": state,
            "completionStats": {"successfulCount": "3", "failedCount": 1, "incompleteCount": "-1"},
            "error": {"code": 8, "message": "Too\nmuch."},
        }
        job = await backend.get(handle)
    assert (job.state, job.ended) == (known, known not in {"waiting", "running"})
    assert (job.counts, job.message) == (BatchCounts(3, 1, None), "Too much.")


async def test_cancelling_an_ended_job_does_nothing(server: JobServer, buckets: Buckets, rows: Path) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        handle = (await backend.submit(NAME, rows, inputs_key=KEY)).handle
        await backend.cancel(handle)
        assert (await backend.get(handle)).state == "running"
        server.jobs[0]["state"] = "JOB_STATE_SUCCEEDED"
        refusal = error(400, "FAILED_PRECONDITION", "has ended")
        server.fault = lambda call: refusal if call.path.endswith(":cancel") else None
        await backend.cancel(handle)
        server.fault = lambda call: (
            refusal if call.path.endswith(":cancel") else Answer(json.dumps({**server.jobs[0], "state": "?"}).encode())
        )
        with pytest.raises(ProviderUnusable, match="has ended"):
            await backend.cancel(handle)


async def test_a_job_that_is_gone_is_said(server: JobServer, buckets: Buckets) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        with pytest.raises(Broken, match="cannot be found"):
            await backend.get(f"{PARENT}/batchPredictionJobs/9")
        for handle in ("../../secrets", "projects/p/locations/l/batchPredictionJobs/1?x=y"):
            with pytest.raises(Broken, match="not the name of a batch job"):
                await backend.get(handle)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.sampled_from(["name", "displayName", "state", "outputInfo", "outputConfig", "error"]), json_values)
async def test_a_job_with_a_wrong_field_is_one_or_a_fault(
    server: JobServer, buckets: Buckets, rows: Path, field: str, value: Any
) -> None:
    server.fault = lambda _: None
    async with vertex_backend(server, buckets) as (backend, _):
        handle = (await backend.submit(NAME, rows, inputs_key=KEY)).handle
        server.fault = lambda _: Answer(json.dumps({**server.jobs[0], field: value}).encode())
        try:
            job = await backend.get(handle)
            assert job.handle == handle
            assert await all_of(backend, job) == []
        except Broken:
            pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(json_values)
async def test_no_reply_is_believed(server: JobServer, buckets: Buckets, rows: Path, reply: Any) -> None:
    """Whatever the server says, what comes back is a job of that server, or a fault."""
    server.fault = lambda _: Answer(json.dumps(reply).encode())
    async with vertex_backend(server, buckets) as (backend, _):
        attempts: list[Callable[[], Awaitable[BatchJob | None]]] = [
            lambda: backend.get(f"{PARENT}/batchPredictionJobs/1"),
            lambda: backend.submit(NAME, rows, inputs_key=KEY),
            lambda: backend.find(NAME),
        ]
        for attempt in attempts:
            try:
                job = await attempt()
            except Fault:
                continue
            assert job is None


# Answers.


def answer(key: str) -> bytes:
    response = {"candidates": [{"content": {"parts": [{"text": key}]}, "finishReason": "STOP"}]}
    return json.dumps({"key": key, "status": "", "response": response}).encode()


async def test_answers_are_read_from_all_files_of_the_jobs_folder(
    server: JobServer, buckets: Buckets, rows: Path
) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        job = await backend.submit(NAME, rows, inputs_key=KEY)
        assert await all_of(backend, job) == []
        folder = "out/_run/batch/1-0/answers/prediction-model-1"
        buckets.put(BUCKET, f"{folder}/predictions_0.jsonl", answer("r-1") + b"\n\n" + answer("r-0"), {})
        buckets.put(BUCKET, f"{folder}/predictions_1.jsonl", answer("r-2") + b"\r\n{torn\n", {})
        buckets.put(BUCKET, f"{folder}/notes.txt", b"no answers", {})
        buckets.put(BUCKET, "out/_run/batch/1-1/answers/predictions.jsonl", answer("r-9"), {})
        for named in ({}, {"outputInfo": {"gcsOutputDirectory": f"gs://{BUCKET}/{folder}"}}):
            server.jobs[0] |= named
            found = await all_of(backend, await backend.get(job.handle))
            assert [each.key for each in found] == ["r-1", "r-0", "r-2", None]


@pytest.mark.parametrize("folder", ["gs://other/out/x", f"gs://{BUCKET}/outside/x", "gs:///x", "s3://b/out/x", "/etc"])
async def test_answers_elsewhere_are_not_read(server: JobServer, buckets: Buckets, rows: Path, folder: str) -> None:
    async with vertex_backend(server, buckets) as (backend, _):
        job = await backend.submit(NAME, rows, inputs_key=KEY)
        server.jobs[0]["outputInfo"] = {"gcsOutputDirectory": folder}
        assert await all_of(backend, await backend.get(job.handle)) == []
        server.jobs[0]["outputConfig"] = {"gcsDestination": {"outputUriPrefix": folder}}
        with pytest.raises(Broken, match="not below"):
            await all_of(backend, await backend.get(job.handle))


def test_lines_are_cut_anywhere() -> None:
    content = b"a\nbb\n\nccc\r\nd"
    for size in range(1, len(content) + 1):
        lines = LineSplitter("x")
        found = [line for at in range(0, len(content), size) for line in lines.feed(content[at : at + size])]
        assert [*found, *lines.end()] == [b"a", b"bb", b"ccc\r", b"d"]


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    lines = LineSplitter("x")
    for _ in range(MOST_LINE // 2**24):
        lines.feed(b" " * 2**24)
    with pytest.raises(Broken, match="which is no answer"):
        lines.feed(b" ")
