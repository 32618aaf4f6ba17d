"""`pipeline run -o gs://...` against the emulator's bucket: the same dataset as in a folder, whatever happens."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from pipeline.emulator import Options
from pipeline.emulator.vertex import Vertex, emulated
from pipeline.endpoint.store_access import store_access
from pipeline.store.address import Address
from pipeline.store.object_store import NotThere, ObjectStore, open_store
from tests.commands import CHUNK, JOB, Done, Shell, ended

ROWS = CHUNK + 200
"""Heavy rows of two chunks."""

PLACE = "gs://bucket/nightly/out"


class Cloud:
    """An emulator with a bucket, and a machine that runs jobs there."""

    def __init__(self, shell: Shell, vertex: Vertex, portal: BlockingPortal, store: ObjectStore) -> None:
        self.shell = shell
        self.vertex = vertex
        self.portal = portal
        self.store = store

    def arguments(self, *more: str) -> tuple[str, ...]:
        address = self.vertex.address
        given = ("--base-url", address.base_url, "--credentials", str(address.credentials_file), "-c", "16")
        return ("run", "job.py", "-o", PLACE, *given, "--no-adaptive", "--quiet", "--json", *more)

    def objects(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for info in self.store.listing():
            with suppress(NotThere):  # removed since it was listed, by a run that works
                found[info.key] = self.store.get(info.key)
        return found

    def rows(self) -> list[dict[str, Any]]:
        parts = [data for key, data in sorted(self.objects().items()) if key.startswith("nightly/out/data/")]
        return [row for part in parts for row in pq.ParquetFile(io.BytesIO(part)).read().to_pylist()]

    def stats(self) -> dict[str, Any]:
        return self.portal.call(self.vertex.stats)

    def control(self, **changes: Any) -> None:
        async def change() -> None:
            await self.vertex.control(**changes)

        self.portal.call(change)

    def lose_the_disk(self) -> None:
        shutil.rmtree(self.shell.folder / "state")

    def run(self, *more: str) -> Done:
        """The command in a process of its own: a pool of workers is forked, which a process with threads must not."""
        with self.shell.started(*self.arguments(*more)) as child:
            return ended(child)


@contextmanager
def cloud_of(folder: Path, **options: Any) -> Iterator[Cloud]:
    with start_blocking_portal() as portal:
        opening = emulated(Options(buckets=("bucket",), **options))
        with portal.wrap_async_context_manager(opening) as vertex, pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", vertex.address.origin)
            variables = {
                "STORAGE_EMULATOR_HOST": vertex.address.origin,
                "PIPELINE_STATE_DIR": str(folder / "state"),
                "OPENAI_API_KEY": "",
            }
            shell = Shell(folder, variables)
            shell.write("job.py", JOB)
            shell.rows(20)
            with store_access(Path(vertex.address.credentials_file)) as access:
                yield Cloud(shell, vertex, portal, open_store(Address("gs", "bucket", ""), access))


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with cloud_of(tmp_path) as cloud:
        yield cloud


def require_same_as_a_folder(cloud: Cloud, rows: int) -> None:
    """Row by row what a run to a local folder writes; a plain dataset for any reader; no token in any object."""
    cloud.shell.rows(rows, heavy=rows > CHUNK)
    local = cloud.shell.pipeline(*[*cloud.arguments(), "-o", "local"])
    assert local.json["status"] == "complete"
    expected = cloud.shell.output("local")
    found = cloud.rows()
    assert [(row["id"], row["status"], row["parsed"]) for row in found] == [
        (row["id"], row["status"], row["parsed"]) for row in expected
    ]
    objects = cloud.objects()
    assert {"nightly/out/_SUCCESS", "nightly/out/_manifest.json"} <= objects.keys()
    assert json.loads(objects["nightly/out/_manifest.json"])["status"] == "complete"
    assert not [key for key in objects if "/_run/journal/" in key or "/_run/intents/" in key]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_to_an_address_gives_the_dataset_of_a_run_to_a_folder(cloud: Cloud, processes: str) -> None:
    """With several processes the pool is forked before the store is used, or this would wait for ever."""
    cloud.shell.rows(ROWS, heavy=True)
    done = cloud.run("--processes", processes)
    assert done.code == 0, done
    assert done.json.items() >= {"status": "complete", "output": PLACE, "ok": ROWS, "requests": ROWS}.items()
    require_same_as_a_folder(cloud, ROWS)
    assert not (cloud.shell.folder / "gs:").exists()


@pytest.mark.parametrize(("processes", "lost"), [("1", False), ("1", True), ("2", False), ("2", True)])
def test_o1_a_killed_run_goes_on_anywhere(cloud: Cloud, processes: str, *, lost: bool) -> None:
    """Killed after the first part was sealed; with its disk lost, what is in the bucket is not asked again."""
    cloud.shell.rows(ROWS, heavy=True)
    cloud.control(latency=0.005)
    with cloud.shell.started(*cloud.arguments("--processes", processes)) as child:
        while not any("/_run/parts/" in key for key in cloud.objects()):
            assert child.poll() is None, ended(child)
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    asked = cloud.stats()["requests"]
    records = [json.loads(data) for key, data in cloud.objects().items() if "/_run/parts/" in key]
    left = ROWS - (sum(record["rows"] for record in records) if lost else asked - 64)
    if lost:
        cloud.lose_the_disk()
    done = cloud.run("--processes", processes)
    assert done.code == 0, done
    assert done.json["requests"] <= left
    require_same_as_a_folder(cloud, ROWS)


def test_o4_tokens_of_a_short_life_and_a_revoked_one_fail_no_write(tmp_path: Path) -> None:
    with cloud_of(tmp_path, token_life=1.0) as cloud:
        cloud.shell.rows(ROWS, heavy=True)
        with cloud.shell.started(*cloud.arguments()) as child:
            while cloud.stats()["requests"] < ROWS // 2:
                assert child.poll() is None, ended(child)
                time.sleep(0.02)
            cloud.control(revoke=True)
            assert ended(child).json["status"] == "complete"
        require_same_as_a_folder(cloud, ROWS)


@pytest.mark.parametrize("fault", ["503", "429", "drop", "lost"])
def test_o4_a_store_that_fails_now_and_then_is_waited_for(tmp_path: Path, fault: str) -> None:
    with cloud_of(tmp_path, bucket_faults={fault: 0.2}) as cloud:
        assert cloud.run().json.items() >= {"status": "complete", "requests": 20}.items()
        cloud.control(bucket_faults={})
        require_same_as_a_folder(cloud, 20)


@pytest.mark.parametrize(
    ("place", "faults", "said"),
    [
        ("gs://nothing/out", {}, "gs://nothing/ does not exist: correct the address, or create the bucket"),
        (PLACE, {"403": 1.0}, "a run needs to create, get, list and delete objects"),
    ],
)
def test_o5_a_bucket_that_cannot_be_written_is_told_before_the_first_call(
    tmp_path: Path, place: str, faults: dict[str, float], said: str
) -> None:
    with cloud_of(tmp_path, bucket_faults=faults) as cloud:
        done = cloud.run("-o", place)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert "Traceback" not in done.err
        assert cloud.stats()["requests"] == 0


def test_no_token_is_in_any_object(cloud: Cloud) -> None:
    assert cloud.run().code == 0
    key = json.loads(Path(cloud.vertex.address.credentials_file).read_text())["private_key"].splitlines()[1]
    for name, data in cloud.objects().items():
        assert b"ya29" not in data, name
        assert key.encode() not in data, name


def test_status_show_and_report_take_the_address_of_a_run(cloud: Cloud) -> None:
    """On a machine that has nothing of it; at work on another one, it is running there."""
    done = cloud.run("--limit", "15")
    assert done.code == 0, done
    cloud.lose_the_disk()
    shell = Shell(
        cloud.shell.folder,
        {**cloud.shell.variables, "GOOGLE_APPLICATION_CREDENTIALS": str(cloud.vertex.address.credentials_file)},
    )
    status = shell.pipeline("status", PLACE, "--json").json
    assert status.items() >= {"status": "complete", "rows": 15, "ok": 15, "holder": None}.items()
    assert status["run_calls"] == 15
    assert f"a_job in {PLACE}, created" in shell.pipeline("status", PLACE).out
    shown = shell.pipeline("show", PLACE, "--row", "7", "--json").json
    assert (shown["ordinal"], shown["id"]) == (7, 7)
    assert shell.pipeline("report", PLACE, "--json").json["report"] == f"{PLACE}/_report.html"
    assert "nightly/out/_report.html" in cloud.objects()
    assert "there is no run at gs://bucket/other" in shell.pipeline("status", "gs://bucket/other").err
    lease = json.loads(cloud.store.get("nightly/out/_run/lease.json"))
    away = {**lease, "released": False, "machine": "another", "host": "far-away"}
    cloud.store.put("nightly/out/_run/lease.json", json.dumps(away).encode())
    assert shell.pipeline("status", PLACE, "--json").json["holder"] == f"pid {lease['pid']} on far-away"
    refused = cloud.run()
    assert refused.code == 8
    assert f"another run works on {PLACE}: pid {lease['pid']} on far-away" in refused.err


def test_a_machine_without_the_parts_reports_the_run_without_a_sample(cloud: Cloud) -> None:
    assert cloud.run().code == 0
    cloud.lose_the_disk()
    with cloud.shell.started(*[one for one in cloud.arguments() if one != "--json"]) as child:
        done = ended(child)
    assert done.code == 0
    assert "rows     20: 20 ok" in done.out
    assert "note:" not in done.err


def test_the_report_of_a_run_is_beside_its_dataset(cloud: Cloud) -> None:
    done = cloud.run("--report")
    assert f"report   {PLACE}/_report.html" in done.err
    assert cloud.objects()["nightly/out/_report.html"].startswith(b"<!DOCTYPE html>")
