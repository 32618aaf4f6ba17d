"""The emulator's buckets, as obstore uses them: an independent client of the XML API of Cloud Storage."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import GCSStore

from pipeline.emulator import BUCKET_FAULTS, Options, parse_bucket_fault
from pipeline.emulator.bucket.objects import LEAST_PART, Buckets, RefusedRequest
from pipeline.emulator.vertex import Vertex, emulated

pytestmark = pytest.mark.anyio

BIG = bytes(range(256)) * (12 << 12)
"""12 MiB."""


def store_of(vertex: Vertex, token: str, *, bucket: str = "bucket", retries: int = 0) -> GCSStore:
    def credentials() -> Any:
        return {"token": token, "expires_at": datetime.now(UTC) + timedelta(hours=1)}

    return GCSStore(
        bucket,
        config={"base_url": vertex.address.origin},
        credential_provider=credentials,
        client_options={"allow_http": True},
        retry_config={
            "max_retries": retries,
            "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2},
            "retry_timeout": timedelta(seconds=60),
        },
    )


@asynccontextmanager
async def bucket(**options: Any) -> AsyncIterator[tuple[GCSStore, Vertex]]:
    """A store with one bucket, and its emulator."""
    async with emulated(Options(buckets=("bucket",), **options)) as vertex:
        yield store_of(vertex, await vertex.token()), vertex


async def content(store: GCSStore, key: str, **options: Any) -> bytes:
    wanted: Any = options
    found = await obstore.get_async(store, key, options=wanted)
    return bytes(await found.bytes_async())


async def keys(store: GCSStore, prefix: str | None = None, **options: Any) -> list[str]:
    return [meta["path"] async for page in obstore.list(store, prefix, **options) for meta in page]


async def test_an_object_is_what_was_put_under_its_name() -> None:
    async with bucket() as (store, _):
        for key, data in {"a": b"", "deep/er/b c.txt": b"x", "é%2F+&=?#": BIG}.items():
            put = await obstore.put_async(store, key, data, use_multipart=False)
            assert await content(store, key) == data
            meta = await obstore.head_async(store, key)
            assert (meta["path"], meta["size"], meta["e_tag"]) == (key, len(data), put["e_tag"])
            assert meta["version"] == put["version"]
            assert abs(meta["last_modified"] - datetime.now(UTC)) < timedelta(minutes=10)
        assert await keys(store) == ["a", "deep/er/b c.txt", "é%2F+&=?#"]


async def test_of_many_writers_that_create_an_object_one_succeeds() -> None:
    async with bucket() as (store, _):
        writes = (obstore.put_async(store, "a", str(n).encode(), mode="create") for n in range(20))
        results = await asyncio.gather(*writes, return_exceptions=True)
        won = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
        assert [type(result) for result in results if isinstance(result, BaseException)] == [AlreadyExistsError] * 19
        assert await content(store, "a") == str(won[0]).encode()


async def test_a_write_on_a_stale_version_is_refused_and_changes_nothing() -> None:
    async with bucket() as (store, _):
        first = await obstore.put_async(store, "a", b"1")
        second = await obstore.put_async(store, "a", b"2", mode=update(first))
        assert int(second["version"] or 0) > int(first["version"] or 0)
        with pytest.raises(PreconditionError):
            await obstore.put_async(store, "a", b"3", mode=update(first))
        with pytest.raises(PreconditionError):
            await obstore.put_async(store, "none", b"3", mode=update(first))
        assert await content(store, "a") == b"2"
        assert await keys(store) == ["a"]


def update(result: Mapping[str, Any]) -> Any:
    return {name: value for name, value in result.items() if value is not None}


async def test_a_reader_that_pins_a_version_never_reads_another_one() -> None:
    async with bucket() as (store, _):
        first = await obstore.put_async(store, "a", b"0123456789")
        assert await content(store, "a", range=(2, 5), if_match=first["e_tag"]) == b"234"
        assert await content(store, "a", version=first["version"]) == b"0123456789"
        await obstore.put_async(store, "a", b"9876543210")
        with pytest.raises(PreconditionError):
            await content(store, "a", range=(2, 5), if_match=first["e_tag"])
        with pytest.raises(FileNotFoundError):
            await content(store, "a", version=first["version"])


async def test_ranges_are_bytes_of_the_object() -> None:
    async with bucket() as (store, _):
        await obstore.put_async(store, "a", b"0123456789")
        assert await content(store, "a", range=(3, 4)) == b"3"
        assert await content(store, "a", range=(3, 100)) == b"3456789"
        assert await content(store, "a", range={"offset": 8}) == b"89"
        assert await content(store, "a", range={"suffix": 3}) == b"789"
        assert [bytes(part) for part in await obstore.get_ranges_async(store, "a", starts=[0, 9], ends=[2, 10])] == [
            b"01",
            b"9",
        ]
        with pytest.raises(GenericError, match=r"416|InvalidRange|range"):
            await content(store, "a", range=(10, 12))


async def test_objects_are_listed_in_order_page_by_page_by_prefix_and_folder() -> None:
    async with bucket() as (store, vertex):
        names = [f"a/{n:04d}" for n in range(1500)] + ["b", "c/d/e", "c/f"]
        await asyncio.gather(*(obstore.put_async(store, name, b"x") for name in reversed(names)))
        assert await keys(store) == names
        assert await keys(store, "c") == ["c/d/e", "c/f"]
        assert await keys(store, offset="a/1498") == names[1499:]
        folder = await obstore.list_with_delimiter_async(store)
        assert (list(folder["common_prefixes"]), [meta["path"] for meta in folder["objects"]]) == (["a", "c"], ["b"])
        counts = (await vertex.stats())["bucket_requests"]
        assert counts["PUT 200"] == len(names)


async def test_copy_rename_and_delete() -> None:
    async with bucket() as (store, _):
        await obstore.put_async(store, "a b", b"1")
        await obstore.copy_async(store, "a b", "c")
        with pytest.raises(AlreadyExistsError):
            await obstore.copy_async(store, "a b", "c", overwrite=False)
        await obstore.rename_async(store, "a b", "d")
        assert await keys(store) == ["c", "d"]
        assert await content(store, "d") == b"1"
        await obstore.delete_async(store, "c")
        with pytest.raises(FileNotFoundError):
            await content(store, "c")


async def test_a_large_object_is_uploaded_in_parts_and_is_visible_only_when_whole() -> None:
    async with bucket() as (store, vertex):
        await obstore.put_async(store, "big", BIG, use_multipart=True, chunk_size=LEAST_PART)
        assert hashlib.sha256(await content(store, "big")).digest() == hashlib.sha256(BIG).digest()
        counts = (await vertex.stats())["bucket_requests"]
        assert (counts["PUT 200"], counts["POST 200"]) == (3, 2)

        def half() -> Any:
            yield BIG[: LEAST_PART * 2]
            raise RuntimeError("the source fails")

        with pytest.raises(Exception, match="the source fails"):
            await asyncio.to_thread(obstore.put, store, "half", half(), chunk_size=LEAST_PART)
        assert await keys(store) == ["big"]


async def test_a_token_is_checked_as_everywhere_else() -> None:
    async with bucket() as (store, vertex):
        await obstore.put_async(store, "a", b"1")
        await vertex.control(revoke=True)
        with pytest.raises(UnauthenticatedError):
            await content(store, "a")
        with pytest.raises(UnauthenticatedError):
            await content(store_of(vertex, "ya29.another"), "a")
        assert (await vertex.request("GET", f"{vertex.address.origin}/bucket/a")).status == 401
        assert await content(store_of(vertex, await vertex.token()), "a") == b"1"


async def test_a_bucket_that_was_not_named_does_not_exist() -> None:
    async with bucket() as (_, vertex):
        other = store_of(vertex, await vertex.token(), bucket="other")
        with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
            await obstore.put_async(other, "a", b"1")


@pytest.mark.parametrize("kind", ["429", "500", "503", "drop", "lost", "cut"])
async def test_a_client_that_tries_again_gets_through_faults(kind: str) -> None:
    """A write whose answer is lost has happened; of a cut one nothing is seen."""
    async with bucket(bucket_faults={kind: 0.5}, bucket_fault_on="PUT *") as (_, vertex):
        patient = store_of(vertex, await vertex.token(), retries=30)
        for number in range(8):
            await obstore.put_async(patient, f"{number}", b"x" * 300_000, use_multipart=False)
        assert await keys(patient) == [str(number) for number in range(8)]
        counts = (await vertex.stats())["bucket_requests"]
        assert counts[f"PUT {kind if kind.isdigit() else 'closed'}"] > 0


async def test_what_was_written_when_the_answer_is_lost_is_there_and_when_it_is_dropped_is_not() -> None:
    async with bucket() as (store, vertex):
        for kind, there in {"lost": True, "drop": False, "cut": False, "503": False}.items():
            await vertex.control(bucket_faults={kind: 1.0}, bucket_fault_on="PUT *")
            with pytest.raises(GenericError):
                await obstore.put_async(store, kind, BIG, use_multipart=False)
            await vertex.control(bucket_faults={})
            assert (kind in await keys(store)) == there


async def test_a_download_that_is_cut_is_no_answer() -> None:
    async with bucket() as (store, vertex):
        await obstore.put_async(store, "a", BIG)
        await vertex.control(bucket_faults={"cut": 1.0}, bucket_fault_on="GET a")
        with pytest.raises(GenericError):
            await content(store, "a")


async def test_permission_that_is_missing_is_told_as_such() -> None:
    async with bucket(bucket_faults={"403": 1.0}, bucket_fault_on="PUT *") as (store, _):
        with pytest.raises(PermissionDeniedError):
            await obstore.put_async(store, "a", b"1")
        assert await keys(store) == []


def test_options_of_buckets_are_checked() -> None:
    assert parse_bucket_fault("lost=0.5") == ("lost", 0.5)
    for wrong in ({"buckets": ("A",)}, {"bucket_faults": {"none": 0.1}}, {"bucket_faults": {"503": 1.1}}):
        with pytest.raises(ValueError, match=r"a bucket has 3 to 63|unknown kind of bucket fault|shares from 0 to 1"):
            Options(**wrong)
    with pytest.raises(ValueError, match="and there is none: name one with --bucket"):
        Options(bucket_faults={"503": 0.1})
    with pytest.raises(ValueError, match="a bucket cannot be called 'stats'"):
        Options(buckets=("stats",))
    assert set(BUCKET_FAULTS) == {"403", "429", "500", "503", "slow", "drop", "lost", "cut"}


def test_parts_of_an_upload_are_checked_when_it_is_completed() -> None:
    """Numbers, etags and sizes; an upload of another key, or one that was aborted, is none."""
    buckets = Buckets(["bucket"], clock=lambda: 1000.0)
    upload = buckets.begin("bucket", "a", {})
    etags = {n: buckets.part("bucket", "a", upload, n, b"x" * size) for n, size in {1: LEAST_PART, 2: 3, 3: 2}.items()}
    for chosen, code in (({}, "InvalidPart"), ({4: etags[1]}, "InvalidPart"), ({1: etags[2]}, "InvalidPart")):
        with pytest.raises(RefusedRequest) as refused:
            buckets.complete("bucket", "a", upload, chosen)
        assert refused.value.code == code
    with pytest.raises(RefusedRequest, match="smaller than the minimum"):
        buckets.complete("bucket", "a", upload, etags)
    with pytest.raises(RefusedRequest, match="upload was not found"):
        buckets.complete("bucket", "b", upload, etags)
    found = buckets.complete("bucket", "a", upload, {number: etags[number] for number in (1, 3)}, match=0)
    assert found.data == b"x" * (LEAST_PART + 2)
    assert buckets.uploads() == 0


def test_generations_grow_even_when_the_clock_does_not() -> None:
    buckets = Buckets(["bucket"], clock=lambda: 1000.0)
    first, second = (buckets.put("bucket", "a", b"same", {}) for _ in range(2))
    assert (first.etag, first.generation < second.generation) == (second.etag, True)
    buckets.delete("bucket", "a", match=second.generation)
    assert buckets.put("bucket", "a", b"same", {}, match=0).generation > second.generation
