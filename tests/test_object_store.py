"""Objects in Cloud Storage through our own store, against the emulator's bucket."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from anyio import from_thread, to_thread

from pipeline.emulator import Options
from pipeline.emulator.vertex import Vertex, emulated
from pipeline.endpoint.network import CA_VARIABLES
from pipeline.endpoint.store_access import store_access
from pipeline.faults import Broken, ProviderUnusable, UsageError
from pipeline.store.address import Address
from pipeline.store.object_store import AlreadyThere, Changed, NotThere, ObjectStore, open_store
from pipeline.store.retries import FIRST_RETRIES_S, RETRIES_S, Timing

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class Outage:
    """Virtual time, in which the faults of the bucket end after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self._ends = seconds

    def timing(self, vertex: Vertex) -> Timing:
        return Timing(lambda: self.now, lambda seconds: self.sleep(seconds, vertex))

    def sleep(self, seconds: float, vertex: Vertex) -> None:
        assert seconds > 0
        self.now += seconds
        if self.now >= self._ends:
            from_thread.run(self._end, vertex)

    async def _end(self, vertex: Vertex) -> None:
        await vertex.control(bucket_faults={})


@asynccontextmanager
async def bucket(
    patch: pytest.MonkeyPatch, name: str = "bucket", outage: Outage | None = None, **options: Any
) -> AsyncIterator[tuple[Any, Vertex]]:
    """A function that calls another one with the store, in a thread; and the emulator."""
    async with emulated(Options(buckets=("bucket",), **options)) as vertex:
        patch.setenv("STORAGE_EMULATOR_HOST", vertex.address.origin)
        patch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "a-project")
        with store_access(Path(vertex.address.credentials_file)) as access:

            async def call(work: Callable[[ObjectStore], T]) -> T:
                timing = outage.timing(vertex) if outage else None
                store = await to_thread.run_sync(lambda: ObjectStore(Address("gs", name, ""), access, timing))
                return await to_thread.run_sync(work, store)

            yield call, vertex


async def test_an_object_is_written_once_on_condition_and_read_by_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bucket(monkeypatch) as (call, _):
        version = await call(lambda store: store.put("a/b c%", b"0123456789", only="new"))
        info = await call(lambda store: store.head("a/b c%"))
        assert (info.key, info.size, info.version) == ("a/b c%", 10, version)
        assert await call(lambda store: store.get("a/b c%")) == b"0123456789"
        assert await call(lambda store: store.get("a/b c%", version=version, start=2, length=3)) == b"234"
        assert await call(lambda store: store.get("a/b c%", start=7)) == b"789"
        assert await call(lambda store: store.get("a/b c%", length=0)) == b""
        with pytest.raises(AlreadyThere, match="gs://bucket/a/b c% exists already"):
            await call(lambda store: store.put("a/b c%", b"2", only="new"))
        newer = await call(lambda store: store.put("a/b c%", b"2", only=version))
        for stale in (
            lambda store: store.put("a/b c%", b"3", only=version),
            lambda store: store.get("a/b c%", version=version, length=1),
        ):
            with pytest.raises(Changed, match="was replaced or deleted"):
                await call(stale)
        assert await call(lambda store: store.get("a/b c%", version=newer)) == b"2"


async def test_a_file_is_put_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"x" * 6_000_000)
    async with bucket(monkeypatch) as (call, vertex):
        await call(lambda store: store.put("part", tmp_path / "part", only="new"))
        assert (await call(lambda store: store.head("part"))).size == 6_000_000
        assert (await vertex.stats())["bucket_requests"]["PUT 200"] == 1


async def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bucket(monkeypatch) as (call, _):
        for missing in (lambda store: store.head("a"), lambda store: store.get("a")):
            with pytest.raises(NotThere, match="gs://bucket/a does not exist"):
                await call(missing)
        await call(lambda store: store.delete("a"))
    async with bucket(monkeypatch, "other") as (call, _):
        with pytest.raises(UsageError, match="gs://other/ does not exist"):
            await call(lambda store: list(store.listing()))


async def test_a_listing_has_every_object_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bucket(monkeypatch) as (call, _):
        names = [f"many/{n:04d}" for n in range(1203)]
        await call(lambda store: [store.put(name, b"") for name in [*names, "manyother", "b"]])
        assert await call(lambda store: [found.key for found in store.listing("many/")]) == names
        assert len(await call(lambda store: list(store.listing()))) == 1205
        assert await call(lambda store: list(store.listing("man"))) == []


async def test_a_file_over_an_object_reads_ahead_and_seeks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bucket(monkeypatch) as (call, vertex):
        version = await call(lambda store: store.put("a", bytes(range(200))))

        def read(store: ObjectStore) -> list[Any]:
            with store.reader("a", version, 200, ahead=100) as file:
                found: list[Any] = [file.read(10) for _ in range(10)]
                found += [file.seek(-5, 2), file.read(50), file.read(1), file.seek(3), file.read(2)]
                return found

        found = await call(read)
        assert b"".join(found[:10]) == bytes(range(100))
        assert found[10:] == [195, bytes(range(195, 200)), b"", 3, b"\x03\x04"]
        assert (await vertex.stats())["bucket_requests"]["GET 206"] == 3


async def test_a_token_that_is_revoked_or_expires_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bucket(monkeypatch) as (call, vertex):
        await call(lambda store: store.put("a", b"1"))
        await vertex.control(revoke=True)
        assert await call(lambda store: store.get("a")) == b"1"
        await vertex.control(revoke=True)
        assert [found.key for found in await call(lambda store: list(store.listing()))] == ["a"]
        counts = (await vertex.stats())["bucket_requests"]
        assert counts["GET 401"] == 2


async def test_access_that_is_denied_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bucket(monkeypatch, bucket_faults={"403": 1.0}, bucket_fault_on="GET a") as (call, _):
        with pytest.raises(ProviderUnusable, match="gs://bucket/a: access is denied") as denied:
            await call(lambda store: store.get("a"))
        assert denied.value.http_status == 403


async def test_a_store_that_is_away_is_told_without_any_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that cannot be repeated: its range is not there."""
    async with bucket(monkeypatch) as (call, _):
        await call(lambda store: store.put("a", b"1"))
        with pytest.raises(Broken, match=r"gs://bucket/a: Google Cloud Storage cannot be used: .*416") as broken:
            await call(lambda store: store.get("a", start=7))
        assert "ya29" not in broken.value.message


async def test_faults_that_pass_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bucket(monkeypatch, bucket_faults={"503": 0.5}, bucket_fault_on="GET *") as (call, vertex):
        await call(lambda store: store.put("a", b"1"))
        assert await call(lambda store: {store.get("a") for _ in range(5)}) == {b"1"}
        assert (await vertex.stats())["bucket_requests"]["GET 503"] > 0


@pytest.mark.parametrize("fault", ["503", "429", "drop"])
async def test_o4_a_store_that_is_away_for_a_minute_is_waited_for(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    outage = Outage(60.0 if fault != "drop" else FIRST_RETRIES_S - 1)  # dropped: it has never answered
    async with bucket(monkeypatch, outage=outage, bucket_faults={fault: 1.0}) as (call, vertex):
        await call(lambda store: store.put("a", b"1", only="new"))
        assert 0 < outage.now < RETRIES_S
        assert await call(lambda store: [found.key for found in store.listing()]) == ["a"]
        assert sum((await vertex.stats())["bucket_requests"].values()) < 25


@pytest.mark.parametrize(("fault", "within"), [("503", RETRIES_S), ("drop", FIRST_RETRIES_S)])
async def test_a_store_that_stays_away_is_told_after_a_while(
    monkeypatch: pytest.MonkeyPatch, fault: str, within: float
) -> None:
    outage = Outage(1e9)
    async with bucket(monkeypatch, outage=outage, bucket_faults={fault: 1.0}) as (call, _):
        with pytest.raises(Broken, match="Google Cloud Storage cannot be used"):
            await call(lambda store: store.head("a"))
        assert outage.now == pytest.approx(within)


@pytest.mark.parametrize("only", ["new", None])
async def test_o8_an_upload_that_is_cut_leaves_no_object(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, only: str | None
) -> None:
    """Whether it is one request, or one in pieces of which the last is never sent whole."""
    (tmp_path / "part").write_bytes(b"x" * 9_000_000)
    faults: dict[str, Any] = {"bucket_faults": {"cut": 1.0}, "bucket_fault_on": "PUT part"}
    async with bucket(monkeypatch, outage=Outage(1e9), **faults) as (call, vertex):
        with pytest.raises(Broken, match="cannot be used"):
            await call(lambda store: store.put("part", tmp_path / "part", only=only))
        assert await call(lambda store: list(store.listing())) == []
        await vertex.control(bucket_faults={})
        await call(lambda store: store.put("part", tmp_path / "part", only=only))
        assert (await call(lambda store: store.head("part"))).size == 9_000_000


def test_s5_a_google_token_goes_to_google_this_machine_or_where_credentials_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with store_access() as access:
        for allowed in ("https://storage.googleapis.com/", "localhost:9000", "http://127.0.0.1:1"):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", allowed)
            assert access.endpoint("gs")
        for wrong in ("http://storage.googleapis.com", "https://googleapis.com.example", "minio:9000"):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", wrong)
            with pytest.raises(UsageError, match="STORAGE_EMULATOR_HOST names another server than Google's"):
                open_store(Address("gs", "bucket", ""), access)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "ftp://x")
        with pytest.raises(UsageError, match="is no URL of a server"):
            access.endpoint("gs")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
        assert access.endpoint("s3") == "http://minio:9000"
        assert access.endpoint("az") is None
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://minio:9000")
    with store_access(tmp_path / "key.json") as access:
        assert access.endpoint("gs") == "http://minio:9000"


def test_requests_take_the_same_way_through_the_network_as_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(b"a certificate")
    with store_access() as access:
        assert access.client_options("gs") == {}
        monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ss@proxy:3128")
        monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        options = access.client_options("gs")
        assert options == {"proxy_url": "http://me:p%40ss@proxy:3128", "root_certificate": b"a certificate"}
        monkeypatch.setenv("NO_PROXY", "blob.core.windows.net")  # each store by its own host
        assert access.client_options("s3")["proxy_url"] == "http://me:p%40ss@proxy:3128"
        assert access.client_options("az")["proxy_excludes"] == "blob.core.windows.net"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9000")
        assert access.client_options("gs")["proxy_excludes"] == "127.0.0.1"


def test_without_the_extra_the_remedy_is_said() -> None:
    script = (
        "import sys; sys.modules['obstore'] = None\n"
        "from pipeline.store.address import Address\n"
        "from pipeline.store.object_store import open_store\n"
        "from pipeline.endpoint.store_access import store_access\n"
        "with store_access() as access: open_store(Address('gs', 'b', ''), access)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "gs:// needs the extra `cloud`: pip install 'vertex-pipeline[cloud]'" in done.stderr
