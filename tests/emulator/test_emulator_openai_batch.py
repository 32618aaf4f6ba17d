"""OpenAI's files and batches, as OpenAI's own SDK uses them."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import aiohttp
import pytest
from openai import APIStatusError, AsyncOpenAI

from pipeline.emulator.server.credentials import API_KEY
from tests.emulator.batches import HOUR, BatchClient, batches, jsonl, read
from tests.emulator.requests import Json, asking, content

pytestmark = pytest.mark.anyio
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"


def row(number: int, **body: Any) -> Json:
    asked = {"model": "gpt-test", "messages": [{"role": "user", "content": f"Order {number} of 2024-05-01."}], **body}
    return {"custom_id": f"r-{number}", "method": "POST", "url": URL, "body": asked}


ROWS = [row(number) for number in range(20)]


def sdk_of(client: BatchClient) -> AsyncOpenAI:
    return AsyncOpenAI(api_key=API_KEY, base_url=f"{client.vertex.address.origin}/v1", max_retries=0)


async def submitted(sdk: AsyncOpenAI, rows: list[Json] | bytes) -> Any:
    """A batch over these rows."""
    data = rows if isinstance(rows, bytes) else jsonl(rows)
    uploaded = await sdk.files.create(file=("in.jsonl", data), purpose="batch")
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose) == (len(data), "in.jsonl", "batch")
    return await sdk.batches.create(
        input_file_id=uploaded.id, endpoint=URL, completion_window="24h", metadata={"name": "n"}
    )


async def output(sdk: AsyncOpenAI, ident: str | None) -> dict[str, Json]:
    """The lines of a file by their ids."""
    if ident is None:
        return {}
    return {each["custom_id"]: each for each in read((await sdk.files.content(ident)).content)}


async def test_a_batch_is_validated_worked_on_finalized_and_completed() -> None:
    async with batches() as client, sdk_of(client) as sdk:
        batch = await submitted(sdk, [*ROWS, row(20, n=99)])
        statuses = [batch.status]
        for _ in range(20):
            await client.vertex.control(batch_advance=HOUR / 20)
            batch = await sdk.batches.retrieve(batch.id)
            statuses.append(batch.status)
        assert list(dict.fromkeys(statuses)) == ["validating", "in_progress", "finalizing", "completed"]
        assert (batch.metadata, batch.request_counts.completed, batch.request_counts.failed) == ({"name": "n"}, 20, 1)
        assert batch.created_at < batch.in_progress_at < batch.completed_at
        answers, errors = await output(sdk, batch.output_file_id), await output(sdk, batch.error_file_id)
        assert (set(answers), set(errors)) == ({each["custom_id"] for each in ROWS}, {"r-20"})
        assert list(answers) != sorted(answers, key=lambda each: int(each[2:]))
        online = await sdk.chat.completions.create(**ROWS[3]["body"])
        body = answers["r-3"]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == online.choices[0].message.content
        assert (errors["r-20"]["response"]["status_code"], errors["r-20"]["error"]) == (400, None)


@pytest.mark.parametrize(
    ("rows", "code", "at"),
    [
        (b'{"custom_id": \n', "invalid_json_line", 1),
        ([row(0), row(0)], "duplicate_custom_id", 2),
        ([row(0), {**row(1), "url": "/v1/embeddings"}], "mismatched_endpoint", 2),
        ([{**row(0), "method": "GET"}], "invalid_method", 1),
        ([{"custom_id": "a"}], "missing_required_parameter", 1),
    ],
)
async def test_one_wrong_line_fails_the_batch(rows: Any, code: str, at: int) -> None:
    async with batches() as client, sdk_of(client) as sdk:
        batch = await submitted(sdk, rows)
        await client.vertex.control(batch_advance=HOUR)
        batch = await sdk.batches.retrieve(batch.id)
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
        assert batch.errors is not None
        assert [(each.code, each.line) for each in batch.errors.data or ()] == [(code, at)]


async def test_rows_that_were_not_answered_in_time_are_errors() -> None:
    async with batches(batch_faults={"job_expired": 1.0}) as client, sdk_of(client) as sdk:
        batch = await submitted(sdk, ROWS)
        await client.vertex.control(batch_advance=HOUR)
        batch = await sdk.batches.retrieve(batch.id)
        answers, errors = await output(sdk, batch.output_file_id), await output(sdk, batch.error_file_id)
        assert (batch.status, len(answers), len(errors)) == ("expired", 12, 8)
        assert {each["error"]["code"] for each in errors.values()} == {"batch_expired"}
        assert set(answers) | set(errors) == {each["custom_id"] for each in ROWS}


async def test_a_cancelled_batch_keeps_its_answers() -> None:
    async with batches() as client, sdk_of(client) as sdk:
        batch = await submitted(sdk, ROWS)
        await client.vertex.control(batch_advance=HOUR / 2)
        assert (await sdk.batches.cancel(batch.id)).status == "cancelling"
        await client.vertex.control(batch_advance=HOUR)
        batch = await sdk.batches.retrieve(batch.id)
        assert batch.status == "cancelled"
        assert 0 < len(await output(sdk, batch.output_file_id)) < len(ROWS)
        with pytest.raises(APIStatusError) as refused:
            await sdk.batches.cancel(batch.id)
        assert refused.value.status_code == 409


async def test_faults_reach_rows_and_requests_of_batches_too() -> None:
    faults = {"row_failed": 0.2, "row_missing": 0.2, "row_doubled": 0.2, "row_unknown_key": 0.2, "create_lost": 1.0}
    async with batches(batch_faults=faults) as client, sdk_of(client) as sdk:
        rows = [row(number) for number in range(60)]
        uploaded = await sdk.files.create(file=("in.jsonl", jsonl(rows)), purpose="batch")
        asked = {"input_file_id": uploaded.id, "endpoint": URL, "completion_window": "24h"}
        with pytest.raises(aiohttp.ClientError):
            await client.send("POST", "/v1/batches", json=asked)
        await client.vertex.control(batch_advance=HOUR)
        (batch,) = (await sdk.batches.list()).data
        assert batch.output_file_id is not None
        lines = read((await sdk.files.content(batch.output_file_id)).content)
        ids = [each["custom_id"] for each in lines]
        errors = await output(sdk, batch.error_file_id)
        assert {each["response"]["status_code"] for each in errors.values()} == {429}
        assert len(ids) > len(set(ids))
        assert any(each.startswith("unknown-") for each in ids)
        assert len(set(ids) | set(errors)) < len(rows)
        stats = await client.vertex.stats()
        assert stats["batch_requests"] == {"create closed": 1, "list 200": 1}
        assert stats["batch_jobs"] == {"completed": 1}


async def test_files_and_batches_are_listed_by_pages_and_files_removed() -> None:
    async with batches() as client, sdk_of(client) as sdk:
        made = [(await submitted(sdk, [row(0)])).id for _ in range(5)]
        assert [each.id async for each in sdk.batches.list(limit=2)] == made[::-1]
        files = [each.id async for each in sdk.files.list(limit=2)]
        assert len(files) == 5
        assert (await sdk.files.delete(files[0])).deleted
        with pytest.raises(APIStatusError) as refused:
            await sdk.files.retrieve(files[0])
        assert refused.value.status_code == 404
        await client.vertex.control(batch_advance=HOUR)
        batch = await sdk.batches.retrieve(made[4])
        assert (batch.status, "was removed" in str(batch.errors)) == ("failed", True)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"input_file_id": "file-unknown"}, 400),
        ({"endpoint": "/v1/embeddings"}, 400),
        ({"completion_window": "1h"}, 400),
    ],
)
async def test_a_batch_that_cannot_be_is_refused(changes: Json, status: int) -> None:
    async with batches() as client, sdk_of(client) as sdk:
        uploaded = await sdk.files.create(file=("in.jsonl", jsonl(ROWS)), purpose="batch")
        asked = {"input_file_id": uploaded.id, "endpoint": URL, "completion_window": "24h", **changes}
        refused = await client.send("POST", "/v1/batches", json=asked)
        assert (refused.status, refused.json()["error"]["type"]) == (status, "invalid_request_error")


async def test_keys_are_for_these_addresses_alone_and_must_be_right() -> None:
    async with batches() as client, sdk_of(client) as sdk:
        wrong = {"Authorization": "Bearer sk-other"}
        for path in ("/v1/batches", "/v1/files"):
            assert (await client.send("GET", path, headers=wrong)).status == 401
        assert (await client.vertex.ask(asking(), API_KEY)).status == 401
        assert (await client.send("POST", URL, json=asking(), headers=wrong)).status == 401
        answered = await sdk.chat.completions.create(**asking())
        assert answered.choices[0].message.content == content(await client.vertex.ask(asking()))
        assert (await client.send("PATCH", "/v1/batches")).status == 405
        assert (await client.send("POST", "/v1/files", data=b"x")).status == 400


async def test_a_large_file_is_taken_whole() -> None:
    async with batches() as client, sdk_of(client) as sdk:
        data = b" " * 30_000_000
        async with asyncio.timeout(120):
            assert (await sdk.files.create(file=("in.jsonl", data), purpose="batch")).bytes == len(data)
