"""Batch prediction jobs: their states, their output, what is refused, and every fault on demand."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from pipeline.emulator import Options, parse_batch_fault, parse_poison
from pipeline.emulator.batch.clock import JobClock
from pipeline.emulator.batch.line_index import LineIndex
from pipeline.emulator.batch.rows import WrittenRow
from pipeline.emulator.batch.work import JobPhase, Work
from pipeline.emulator.vertex import emulated
from tests.emulator.batches import HOUR, MODEL, BatchClient, batches, job_body, line, text_of
from tests.emulator.requests import Json, asking, content

pytestmark = pytest.mark.anyio
ROWS = [line(number) for number in range(40)]


def ids(rows: list[Json]) -> list[str]:
    return [row["request"]["labels"]["row"] for row in rows]


def test_a_clock_goes_by_itself_or_only_when_it_is_moved() -> None:
    ticks = iter([100.0, 100.0, 107.0])
    clock = JobClock(manual=False, ticks=lambda: next(ticks))
    assert (clock.now(), clock.now()) == (0.0, 7.0)
    still = JobClock(manual=True)
    still.advance(5)
    assert (still.now(), still.stamp(5) > still.stamp(0)) == (5.0, True)
    with pytest.raises(ValueError, match="0 or more"):
        still.advance(-1)


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ([b""], []),
        ([b"a\nbb\n"], [b"a", b"bb"]),
        ([b"a\n\n  \nbb"], [b"a", b"bb"]),
        ([b"", b"a\n", b"", b"b\nc", b"\n"], [b"a", b"b", b"c"]),
    ],
)
def test_lines_are_found_in_all_files_in_steps_of_any_size(contents: list[bytes], found: list[bytes]) -> None:
    for size in (1, 2, 100):
        rows = LineIndex(contents)
        while rows.find(size):
            pass
        assert [rows[index] for index in range(len(rows))] == found


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
@pytest.mark.parametrize("location", ["global", "europe-west4"])
async def test_a_job_waits_runs_and_ends(version: str, location: str) -> None:
    parent = f"projects/p/locations/{location}/batchPredictionJobs"
    async with batches() as plain:
        client = BatchClient(plain.vertex, plain.token, f"/{version}/{parent}")
        await client.put(ROWS)
        created = await client.create()
        assert created["state"] == "JOB_STATE_PENDING"
        assert created["name"].startswith(f"{parent}/")
        assert {name: created[name] for name in job_body()} == job_body()
        running = await client.after(HOUR / 2, created)
        assert running["state"] == "JOB_STATE_RUNNING"
        assert int(running["completionStats"]["incompleteCount"]) > 0
        assert await client.files() == {}
        ended = await client.after(HOUR / 2, created)
        assert ended["state"] == "JOB_STATE_SUCCEEDED"
        assert ended["completionStats"] == {"successfulCount": "40", "failedCount": "0", "incompleteCount": "0"}
        assert ended["createTime"] < ended["startTime"] < ended["endTime"] == ended["updateTime"]
        (key,) = await client.files()
        assert f"gs://bucket/{key}" == ended["outputInfo"]["gcsOutputDirectory"] + "/predictions.jsonl"
        assert key.startswith("out/prediction-model-")


async def test_rows_come_back_once_each_in_an_order_of_the_seed() -> None:
    orders = []
    for seed in (1, 1, 2):
        async with batches(seed=seed) as client:
            _, rows = await client.done(ROWS)
            assert sorted(ids(rows)) == sorted(ids(ROWS))
            orders.append(ids(rows))
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in (*orders, ids(ROWS))}) == 3


async def test_a_row_has_the_answer_that_the_same_question_gets_online() -> None:
    async with batches(seed=7) as client:
        _, (row,) = await client.done([line(1, "Tell me about rivers.")])
        assert text_of(row) == content(await client.vertex.ask(asking()))
        assert row["response"]["usageMetadata"]["trafficType"] == "ON_DEMAND"
        assert (row["status"], row["response"]["modelVersion"]) == ("", "gemini-test")
        assert row["request"] == line(1, "Tell me about rivers.")["request"]


async def test_several_files_appear_one_after_another() -> None:
    async with batches(batch_files=4) as client:
        await client.put(ROWS)
        created = await client.create()
        seen = [len(await client.files()) for _ in range(8) if await client.after(HOUR / 8, created)]
        assert seen == sorted(seen)
        assert len(set(seen)) > 2
        files = await client.files()
        assert [key.rpartition("/")[2] for key in files] == [f"predictions-0000{n}-of-00004.jsonl" for n in range(1, 5)]
        assert sorted(ids(await client.rows())) == sorted(ids(ROWS))


@pytest.mark.parametrize("echo", ["key", "labels", "both", "none"])
async def test_rows_come_back_with_the_ids_that_are_asked_for(echo: str) -> None:
    async with batches(batch_echo=echo) as client:
        _, (row,) = await client.done([line(3)])
        assert ("key" in row) == (echo in {"key", "both"})
        assert ("labels" in row["request"]) == (echo in {"labels", "both"})


async def test_a_wrong_request_fails_its_row_alone() -> None:
    wrong = line(1)
    wrong["request"]["content"] = []
    async with batches() as client:
        job, rows = await client.done([line(0), wrong, {"key": "r-2"}, line(3, labels={"Row": "3"})])
        assert job["state"] == "JOB_STATE_SUCCEEDED"
        assert job["completionStats"] == {"successfulCount": "1", "failedCount": "3", "incompleteCount": "0"}
        failed = [row for row in rows if row["status"]]
        assert all(row["response"] == {} for row in failed)
        assert sum("INVALID_ARGUMENT error occurred: {" in row["status"] for row in failed) == 3
        assert sum('Unknown name \\"content\\"' in row["status"] for row in failed) == 1


@pytest.mark.parametrize(
    ("rows", "options", "code", "said"),
    [
        (b'{"request": {}}\n{"request": \n', {}, 3, "Line 2 is not valid JSON"),
        (b"[]\n", {}, 3, "Line 1 is not a JSON object"),
        ([line(n) for n in range(4)], {"batch_most_rows": 3}, 3, "more than 3 requests"),
        ([line(0)], {"batch_most_bytes": 20}, 3, "larger than 20 bytes"),
        (None, {}, 5, "Cannot read gs://bucket/in.jsonl"),
        ([line(0)], {"batch_faults": {"job_denied": 1.0}}, 7, "storage.objects.get"),
    ],
)
async def test_a_job_without_a_usable_input_fails_with_the_reason(
    rows: Any, options: Json, code: int, said: str
) -> None:
    async with batches(**options) as client:
        if rows is not None:
            await client.put(rows)
        job = await client.after(HOUR, await client.create())
        assert (job["state"], job["error"]["code"]) == ("JOB_STATE_FAILED", code)
        assert said in job["error"]["message"]
        assert await client.files() == {}
        assert (await client.vertex.stats())["answers"] == 0


async def test_a_job_whose_output_cannot_be_stored_fails() -> None:
    target = {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://elsewhere"}}
    async with batches() as client:
        job, _ = await client.done(ROWS, outputConfig=target)
        assert (job["state"], "gs://elsewhere/" in job["error"]["message"]) == ("JOB_STATE_FAILED", True)


async def test_an_input_without_rows_makes_an_empty_output() -> None:
    async with batches() as client:
        job, rows = await client.done(b"\n")
        assert (job["state"], rows, len(await client.files())) == ("JOB_STATE_SUCCEEDED", [], 1)


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"displayName": ""}, 400, "display_name is required"),
        ({"model": "gemini-test"}, 400, "Invalid model"),
        ({"model": "projects/p/locations/l/endpoints/1"}, 400, "Invalid model"),
        ({"model": "publishers/google/models/palm"}, 404, "Publisher Model"),
        ({"inputConfig": {"instancesFormat": "bigquery"}}, 400, "instances_format"),
        ({"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": []}}}, 400, "gcs_source.uris"),
        ({"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["/folder/a"]}}}, 400, "Cloud Storage uri"),
        ({"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://b"]}}}, 400, "Cloud Storage uri"),
        ({"outputConfig": {"predictionsFormat": "csv"}}, 400, "predictions_format"),
        ({"outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {}}}, 400, "Cloud Storage uri"),
        ({"labels": {"Upper": "x"}}, 400, "Invalid label"),
        ({"requestId": "x"}, 400, 'Unknown name "requestId"'),
    ],
)
async def test_a_job_that_cannot_be_created_is_refused(changes: Json, status: int, said: str) -> None:
    async with batches(unknown_models=("google/palm*",)) as client:
        refused = await client.send("POST", client.parent, json=job_body(**changes))
        assert refused.status == refused.json()["error"]["code"] == status
        assert said in refused.json()["error"]["message"]
        assert (await client.send("GET", client.parent)).json()["batchPredictionJobs"] == []


async def test_what_is_not_asked_properly_is_refused() -> None:
    async with batches(down_locations=("mars",)) as client:
        strange = "/v1/projects/p/locations/mars/batchPredictionJobs"
        assert (await client.send("GET", client.parent, headers={"Authorization": "Bearer x"})).status == 401
        assert (await client.send("POST", client.parent, data=b"{")).status == 400
        assert (await client.send("DELETE", client.parent)).status == 405
        assert (await client.send("GET", f"{client.parent}/1")).status == 404
        assert (await client.send("GET", strange)).status == 503
        elsewhere = (await client.create())["name"].replace("/global/", "/us-central1/")
        assert (await client.send("GET", f"/v1/{elsewhere}")).status == 404
        for query in ("pageToken=x", "filter=a%3E1"):
            assert (await client.send("GET", f"{client.parent}?{query}")).status == 400


async def test_jobs_are_listed_by_pages_and_filters_the_newest_first() -> None:
    async with batches() as client:
        await client.put([line(0)])
        made = [(await client.create(name=f"n{number % 2}"))["name"] for number in range(5)]
        whole = (await client.send("GET", client.parent)).json()
        assert [job["name"] for job in whole["batchPredictionJobs"]] == made[::-1]
        found: list[str] = []
        token = ""
        while not found or token:
            page = (await client.send("GET", f"{client.parent}?pageSize=2&pageToken={token}")).json()
            found += [job["name"] for job in page["batchPredictionJobs"]]
            token = page.get("nextPageToken", "")
        assert found == made[::-1]
        query = "filter=displayName%3D%22n1%22%20AND%20state%3D%22JOB_STATE_PENDING%22"
        some = (await client.send("GET", f"{client.parent}?{query}")).json()
        assert [job["name"] for job in some["batchPredictionJobs"]] == [made[3], made[1]]
        other = await client.send("GET", "/v1/projects/q/locations/global/batchPredictionJobs")
        assert other.json() == {"batchPredictionJobs": []}


async def test_a_cancelled_job_keeps_what_was_answered_and_nothing_more_is_paid() -> None:
    async with batches() as client:
        await client.put(ROWS)
        created = await client.create()
        await client.after(HOUR / 2, created)
        assert (await client.send("POST", f"/v1/{created['name']}:cancel")).json() == {}
        assert (await client.job(created))["state"] == "JOB_STATE_CANCELLING"
        job = await client.after(HOUR, created)
        assert job["state"] == "JOB_STATE_CANCELLED"
        rows = await client.rows()
        assert 0 < len(rows) < len(ROWS)
        assert job["completionStats"]["incompleteCount"] == str(len(ROWS) - len(rows))
        assert (await client.vertex.stats())["answers"] == len(rows)
        again = await client.send("POST", f"/v1/{created['name']}:cancel")
        assert (again.status, again.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")


# Faults.


def test_kinds_and_shares_of_batch_faults_are_checked() -> None:
    assert parse_batch_fault("row_missing=0.1") == ("row_missing", 0.1)
    assert parse_poison("never=row_missing") == ("never", "row_missing")
    Options(batch_faults={"row_missing": 0.9, "job_failed": 0.9})
    wrong: list[Json] = [
        {"batch_faults": {"row_lost": 0.1}},
        {"batch_faults": {"row_missing": 0.6, "row_cut": 0.6}},
        {"poison": {"x": "job_failed"}},
        {"batch_delay": -1},
        {"batch_clock": "fast"},
        {"batch_echo": "all"},
        {"batch_files": 0},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=r"batch|fault"):
            Options(**options)


async def _damaged(kind: str, share: float = 1.0) -> tuple[Json, list[Json]]:
    async with batches(batch_faults={kind: share}, batch_echo="both") as client:
        return await client.done(ROWS)


async def test_a_failed_row_has_its_error_inside_a_sentence() -> None:
    job, rows = await _damaged("row_failed")
    assert job["completionStats"]["failedCount"] == "40"
    sentence, _, body = rows[0]["status"].partition(": ")
    assert (sentence, json.loads(body)["error"]["code"]) == ("RESOURCE_EXHAUSTED error occurred", 429)


async def test_missing_and_doubled_rows_are_a_share_of_all() -> None:
    job, rows = await _damaged("row_missing", 0.3)
    assert 0 < len(rows) < len(ROWS)
    assert job["completionStats"]["incompleteCount"] == str(len(ROWS) - len(rows))
    _, rows = await _damaged("row_doubled", 0.3)
    assert set(Counter(ids(rows)).values()) == {1, 2}
    _, rows = await _damaged("row_unknown_key", 0.3)
    foreign = [row for row in rows if row["key"].startswith("unknown-")]
    assert 0 < len(foreign) < len(ROWS) == len(rows)
    assert all(row["request"]["labels"]["row"] not in ids(ROWS) for row in foreign)


async def test_rows_without_an_answer_say_why() -> None:
    _, rows = await _damaged("row_no_candidates")
    assert all(row["response"]["candidates"] == [] for row in rows)
    _, rows = await _damaged("row_blocked")
    assert all("candidates" not in row["response"] for row in rows)
    assert rows[0]["response"]["promptFeedback"] == {"blockReason": "SAFETY"}
    _, cut = await _damaged("row_cut")
    assert {row["response"]["candidates"][0]["finishReason"] for row in cut} == {"MAX_TOKENS"}
    async with batches() as client:
        _, whole = await client.done(ROWS)
        full = {row["request"]["labels"]["row"]: text_of(row) for row in whole}
        assert all(full[row["key"]].startswith(text_of(row)) for row in cut)
        assert all(full[row["key"]] != text_of(row) for row in cut)


@pytest.mark.parametrize(
    ("kind", "state", "count"),
    [
        ("job_failed", "JOB_STATE_FAILED", 24),
        ("job_expired", "JOB_STATE_EXPIRED", 24),
        ("job_partial", "JOB_STATE_PARTIALLY_SUCCEEDED", 36),
        ("job_stuck", "JOB_STATE_PENDING", 0),
    ],
)
async def test_jobs_end_badly_with_what_they_had_answered(kind: str, state: str, count: int) -> None:
    async with batches(batch_faults={kind: 1.0}) as client:
        job, rows = await client.done(ROWS)
        assert (job["state"], len(rows)) == (state, count)
        assert ("error" in job) == (kind == "job_failed")
        if kind == "job_stuck":
            await client.send("POST", f"/v1/{job['name']}:cancel")
            assert (await client.after(HOUR, job))["state"] == "JOB_STATE_CANCELLED"


async def test_a_lost_creation_leaves_a_job_and_a_refused_one_none() -> None:
    async with batches(batch_faults={"create_lost": 1.0}) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.create(name="lost")
        (job,) = (await client.send("GET", client.parent)).json()["batchPredictionJobs"]
        assert job["displayName"] == "lost"
        for kind in ("429", "503"):
            await client.vertex.control(batch_faults={f"create_{kind}": 1.0}, retry_after="7")
            refused = await client.send("POST", client.parent, json=job_body())
            assert (refused.status, refused.headers["Retry-After"]) == (int(kind), "7")
        assert len((await client.send("GET", client.parent)).json()["batchPredictionJobs"]) == 1
        stats = await client.vertex.stats()
        counted = {"create 429": 1, "create 503": 1, "create closed": 1, "list 200": 2}
        assert (stats["batch_requests"], stats["batch_jobs"]) == (counted, {"JOB_STATE_PENDING": 1})


@pytest.mark.parametrize("kind", ["429", "503"])
async def test_a_share_of_the_looks_at_jobs_is_refused(kind: str) -> None:
    async with batches(batch_faults={f"get_{kind}": 0.5}) as client:
        created = await client.create()
        statuses = Counter([(await client.send("GET", f"/v1/{created['name']}")).status for _ in range(20)])
        assert set(statuses) == {200, int(kind)}


async def test_poison_and_the_faults_of_a_model_reach_rows_too() -> None:
    poison = {"Order 1 ": "row_missing", "Order 2 ": "500", "Order 3 ": "wrong_schema"}
    async with batches(poison=poison, faults={"503": 0.5, "content_filter": 0.5}) as client:
        _, rows = await client.done(ROWS)
        by_id = {row["request"]["labels"]["row"]: row for row in rows}
        assert "r-1" not in by_id
        assert "INTERNAL" in by_id["r-2"]["status"]
        assert "unexpected_field" in text_of(by_id["r-3"])
        reasons = Counter(row["response"]["candidates"][0]["finishReason"] for row in rows if row["response"])
        assert set(reasons) == {"STOP", "SAFETY"}
        assert [name for name, row in by_id.items() if row["status"]] == ["r-2"]  # a 503 is the endpoint's, online


async def test_time_passes_by_itself_unless_it_is_asked_not_to() -> None:
    async with emulated(Options(buckets=("bucket",), batch_delay=0.0)) as vertex:
        client = BatchClient(vertex, await vertex.token())
        await client.put(ROWS)
        created = await client.create()
        async with asyncio.timeout(60):
            while (job := await client.job(created))["state"] != "JOB_STATE_SUCCEEDED":
                pass
        assert job["completionStats"]["successfulCount"] == "40"
        await vertex.control(batch_delay=1.0, batch_clock="manual")
        waiting = await client.create()
        assert (await client.after(0.5, waiting))["state"] == "JOB_STATE_RUNNING"
        assert (await client.after(0.5, waiting))["state"] == "JOB_STATE_SUCCEEDED"


async def test_open_models_have_rows_in_the_form_of_openai() -> None:
    model = "publishers/meta/models/llama-test"
    body = {"messages": [{"role": "user", "content": "Tell me about rivers."}]}
    rows = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}},
    ]
    async with batches() as client:
        job, found = await client.done(rows, model=model)
        assert job["completionStats"] == {"successfulCount": "1", "failedCount": "1", "incompleteCount": "0"}
        by_id = {row["custom_id"]: row["response"] for row in found}
        answer = by_id["a"]["body"]["choices"][0]["message"]["content"]
        assert answer == content(await client.vertex.ask(asking()))
        assert (by_id["a"]["status_code"], by_id["b"]["status_code"]) == (200, 400)
        assert by_id["a"]["body"]["model"] == "meta/llama-test"
        await client.put([rows[0], rows[0]])
        job = await client.after(HOUR, await client.create(model=model))
        assert "is used by an earlier line" in job["error"]["message"]


async def test_googles_own_sdk_creates_gets_lists_and_cancels() -> None:
    genai = pytest.importorskip("google.genai")
    credentials = pytest.importorskip("google.oauth2.credentials")
    async with batches() as client:
        await client.put(ROWS)
        http = genai.types.HttpOptions(base_url=client.vertex.address.origin, api_version="v1")
        google = genai.Client(
            vertexai=True,
            project="p",
            location="europe-west4",
            credentials=credentials.Credentials(client.token),
            http_options=http,
        )
        sdk = google.batches
        config = {"dest": "gs://bucket/out/", "display_name": "pipeline-1"}
        made = [
            await asyncio.to_thread(sdk.create, model="gemini-test", src="gs://bucket/in.jsonl", config=config)
            for _ in range(2)
        ]
        assert (made[0].state.name, made[0].model) == ("JOB_STATE_PENDING", MODEL)
        await asyncio.to_thread(sdk.cancel, name=made[1].name)
        await client.vertex.control(batch_advance=HOUR)
        ended = [await asyncio.to_thread(sdk.get, name=job.name) for job in made]
        assert [job.state.name for job in ended] == ["JOB_STATE_SUCCEEDED", "JOB_STATE_CANCELLED"]
        assert (ended[0].completion_stats.successful_count, ended[0].done) == (40, True)
        (key,) = await client.files()
        assert ended[0].output_info.gcs_output_directory == f"gs://bucket/{key}".removesuffix("/predictions.jsonl")
        query = {"page_size": 1, "filter": 'displayName="pipeline-1"'}
        listed = await asyncio.to_thread(lambda: [job.name for job in sdk.list(config=query)])
        assert listed == [job.name for job in made[::-1]]


class _Echo:
    """Rows that come back as they are."""

    def check(self, line: bytes, number: int) -> None:
        pass

    def write(self, line: bytes, number: int) -> WrittenRow:  # noqa: ARG002 - the signature of `RowWriter`
        return WrittenRow((line,), succeeded=True)


class _Counted:
    """A shelf whose output is measured and thrown away."""

    failed_apart = False

    def __init__(self, rows: int) -> None:
        self.data = b"".join(b'{"key": "r-%06d", "text": "%s"}\n' % (n, b"x" * 400) for n in range(rows))
        self.sizes: list[int] = []

    def load(self) -> list[bytes]:
        return [self.data]

    def put(self, number: int, lines: bytes) -> None:  # noqa: ARG002 - the signature of `Shelf`
        self.sizes.append(len(lines))

    def put_failed(self, lines: bytes) -> None:
        raise AssertionError(lines)

    def left_out(self, rows: LineIndex, indices: Sequence[int]) -> None:
        raise AssertionError((rows, indices))


def test_a_job_keeps_little_beside_its_objects() -> None:
    """One file of the output at a time, and some 70 bytes a row while their order is drawn."""
    shelf = _Counted(20_000)
    work = Work(_Echo(), shelf, Options(batch_delay=0, batch_files=10), 1, 0.0)
    tracemalloc.start()
    while work.step(0.0):
        pass
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (work.phase, sum(shelf.sizes), len(shelf.sizes)) == (JobPhase.SUCCEEDED, len(shelf.data), 10)
    assert most < 2 * max(shelf.sizes) + 70 * 20_000
