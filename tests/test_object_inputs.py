"""Input in an object store: found by listing, pinned to its versions, read by ranges; the same rows as from a disk."""

from __future__ import annotations

import gzip
import json
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from pipeline.emulator.options import Options
from pipeline.emulator.vertex import Vertex, emulated
from pipeline.endpoint.store_access import store_access
from pipeline.faults import Broken, UsageError
from pipeline.source import Source, Survey, SurveyProgress, discover, found_again, survey
from pipeline.source.identity import changed
from pipeline.store.address import Address
from pipeline.store.stores import Stores, opened_stores, store_at
from tests.commands import JOB, Shell, ended

MIB = 1 << 20


@dataclass(frozen=True)
class Bucket:
    """An emulator with the bucket `raw`, and the ways to call it."""

    vertex: Vertex
    portal: BlockingPortal

    def put(self, key: str, content: bytes | Path) -> str:
        store, name = store_at(f"gs://raw/{key}")
        return store.put(name, content if isinstance(content, bytes) else content.read_bytes())

    def requests(self) -> dict[str, int]:
        return dict(self.portal.call(self.vertex.stats).get("bucket_requests", {}))

    def answers(self) -> int:
        return len(self.portal.call(self.vertex.answers))

    def control(self, **changes: Any) -> None:
        self.portal.call(partial(self.vertex.control, **changes))

    @property
    def variables(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.vertex.address.origin,
            "GOOGLE_APPLICATION_CREDENTIALS": self.vertex.address.credentials_file,
        }


@contextmanager
def emulator(**options: Any) -> Iterator[Bucket]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(emulated(Options(buckets=("raw",), **options))) as vertex,
    ):
        yield Bucket(vertex, portal)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket that this process reads."""
    with emulator(nonce=True, latency=0.01) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.vertex.address.origin)
        with store_access(Path(bucket.vertex.address.credentials_file)) as access, opened_stores(access):
            yield bucket


def lines(first: int, count: int, **more: Any) -> bytes:
    return b"".join(
        json.dumps({"id": n, "text": f"text {n}", **more}).encode() + b"\n" for n in range(first, first + count)
    )


def table(first: int, count: int) -> pa.Table:
    return pa.table({"id": range(first, first + count), "text": [f"text {n}" for n in range(first, first + count)]})


def keys_of(inputs: str | Sequence[str], **options: Any) -> list[str]:
    return [str(found.path).removeprefix("gs://raw/") for found in discover(inputs, **options).files]


def rows_of(found: Survey, order: Sequence[int] | None = None) -> list[list[Any]]:
    """The ids of the rows of each chunk, read in this order."""
    source = Source(found, needed=["id"], kept=["id"])
    chunks = order if order is not None else range(len(found.chunks))
    read = [[row.values.get("id") for batch in source.chunk(index) for row in batch.rows] for index in chunks]
    source.close()
    return read


# Which objects are read.


def test_an_address_names_an_object_a_folder_or_a_pattern(bucket: Bucket) -> None:
    names = ["a/2.jsonl", "a/1.jsonl", "a/b/3.jsonl.gz", "ab/4.jsonl", "a/_run/x.jsonl", "a/_x.jsonl", "a/.y.jsonl"]
    for name in [*names, "a/_SUCCESS", "a/read.me", "a/.z/q.jsonl"]:
        bucket.put(name, b"")
    everything = ["a/1.jsonl", "a/2.jsonl", "a/b/3.jsonl.gz"]
    for address in ("gs://raw/a", "gs://raw/a/", "gs:/raw/a"):
        assert keys_of(address) == everything
    assert keys_of("gs://raw") == [*everything, "ab/4.jsonl"]
    assert keys_of("gs://raw/a/*.jsonl") == everything[:2]
    assert keys_of("gs://raw/a*/[34]*") == ["ab/4.jsonl"]
    assert keys_of("gs://raw/**/*.jsonl") == [*everything[:2], "ab/4.jsonl"]
    assert keys_of("gs://raw/*b") == ["ab/4.jsonl"]
    assert keys_of("gs://raw/a/2.jsonl") == ["a/2.jsonl"]
    assert keys_of("gs://raw/a/_x.jsonl") == ["a/_x.jsonl"]
    assert keys_of(["gs://raw/ab", "gs://raw/a", "gs://raw/a/2.jsonl"]) == ["ab/4.jsonl", *everything]
    assert keys_of("gs://raw", include="ab/*") == ["ab/4.jsonl"]
    found = discover("gs://raw/a")
    assert [file.name for file in found.files] == ["1.jsonl", "2.jsonl", "b/3.jsonl.gz"]
    assert found.notes == ("skipped in gs://raw/a: 1 .jsonl, 1 .me",)


def test_folders_of_a_key_give_columns(bucket: Bucket) -> None:
    bucket.put("date=2026-11-28/kind=a%20b/x.jsonl", lines(0, 1))
    found = survey("gs://raw/date=2026-11-28")
    assert found.files[0].partitions == (("date", "2026-11-28"), ("kind", "a b"))
    assert set(found.columns) == {"id", "text", "date", "kind"}


@pytest.mark.parametrize(
    ("put", "inputs", "refusal"),
    [
        ([], "gs://raw/none", r"no input file matches 'gs://raw/none'"),
        ([], "gs://raw/none/*.jsonl", r"no input file matches 'gs://raw/none/\*.jsonl'"),
        ([], "gs://other/x", r"gs://other/ does not exist: correct the address, or create the bucket"),
        (["a.jsonl", "b.csv"], "gs://raw", r"the input mixes JSONL \(gs://raw/a.jsonl\) and CSV \(gs://raw/b.csv\)"),
        (["a.jsonl", "b.avro"], "gs://raw", r"their kind is not supported:\n  - gs://raw/b.avro"),
        (["b.txt"], "gs://raw/b.txt", r"gs://raw/b.txt: unknown kind of file"),
        (["t/_delta_log/0.json", "t/a.parquet"], "gs://raw", r"gs://raw/t is a table of Delta"),
        (["t/metadata/v1.metadata.json", "t/a.parquet"], "gs://raw/t", r"gs://raw/t is a table of Iceberg"),
        (["a.jsonl"], ["gs://raw/a.jsonl", __file__], r"files of this machine and objects|unknown kind"),
        (["o/data/part-000000.parquet", "o/_run/plan.json"], "gs://raw/o/data", r"gs://raw/o is the output of a run"),
    ],
)
def test_what_cannot_be_input_is_refused_with_the_remedy(
    put: list[str], inputs: str | list[str], refusal: str, bucket: Bucket
) -> None:
    for key in put:
        bucket.put(key, b"")
    with pytest.raises(UsageError, match=refusal):
        discover(inputs)


def test_a_run_is_read_as_its_ok_rows(bucket: Bucket, tmp_path: Path) -> None:
    part = table(0, 4).append_column("status", pa.array(["ok", "failed", "ok", "failed"]))
    pq.write_table(part, tmp_path / "part")
    bucket.put("o/data/part-000000.parquet", tmp_path / "part")
    for marker in ("o/_SUCCESS", "o/_manifest.json"):
        bucket.put(marker, b"")
    assert rows_of(survey("gs://raw/o")) == [[0, 2]]
    assert rows_of(survey("gs://raw/o", rows="all")) == [[0, 1, 2, 3]]


def test_outside_of_a_command_that_reads_stores_the_remedy_is_said() -> None:
    with pytest.raises(UsageError, match=r"gs:// is not supported yet: .* `gcloud storage cp`"):
        discover("gs://raw/x.jsonl")


# The rows.


def test_text_is_the_same_by_ranges_and_from_disk_whatever_chunk_is_read_first(bucket: Bucket, tmp_path: Path) -> None:
    whole = lines(0, 700) + b"not json\n" + lines(700, 300)
    forms: dict[str, Callable[[bytes], bytes]] = {
        "a.jsonl": bytes,
        "b.jsonl.gz": gzip.compress,
        "c.jsonl": lambda content: content.decode().encode("utf-16"),
    }
    for name, form in forms.items():
        (tmp_path / name).write_bytes(form(whole))
        bucket.put(name, tmp_path / name)
        near, far = (survey(place, chunk_rows=250) for place in (str(tmp_path / name), f"gs://raw/{name}"))
        assert (far.rows, far.columns, far.chunks, far.bad_count) == (near.rows, near.columns, near.chunks, 1)
        order = [3, 0, 4, 1, 2]
        assert rows_of(far, order) == rows_of(near, order)
    assert "GET 200" not in bucket.requests()


def test_a_survey_keeps_the_versions_and_is_read_again_from_json(bucket: Bucket) -> None:
    version = bucket.put("a.jsonl", lines(0, 3))
    found = survey("gs://raw/a.jsonl")
    assert (found.files[0].version, found.files[0].sha256, found.files[0].size) == (version, "", len(lines(0, 3)))
    assert Survey.from_json(json.loads(json.dumps(found.to_json()))) == found
    local = found.to_json()
    local["files"] = [file[:count] for file in local["files"] for count in [7]]
    assert Survey.from_json(local).files[0].version == ""


def test_text_is_read_in_large_ranges_and_compressed_text_once_onto_disk(bucket: Bucket) -> None:
    noise = random.Random(1)
    content = b"".join(lines(n, 1, rest=noise.randbytes(5000).hex()) for n in range(2000))
    bucket.put("a.jsonl", content)
    found = survey("gs://raw/a.jsonl", chunk_rows=500)
    before = bucket.requests()["GET 206"]
    assert len(content) > 18 * MIB
    assert before <= 5  # one for the first rows, and three of 8 MiB
    assert rows_of(found, [2]) == [list(range(1000, 1500))]
    assert bucket.requests()["GET 206"] - before <= 2
    packed = gzip.compress(content, 1)
    assert len(packed) > 8 * MIB
    bucket.put("a.jsonl.gz", packed)
    found, before = survey("gs://raw/a.jsonl.gz", chunk_rows=500), bucket.requests()["GET 206"]
    assert rows_of(found, [3, 1, 2, 0]) == [list(range(n * 500, n * 500 + 500)) for n in (3, 1, 2, 0)]
    assert bucket.requests()["GET 206"] == before


def test_objects_are_requested_ahead_of_their_turn_and_each_once(bucket: Bucket) -> None:
    for number in range(9):
        bucket.put(f"n/{number}.jsonl", lines(number * 1000, 1000))
    progress = SurveyProgress()
    found = survey("gs://raw/n", chunk_rows=1000, progress=progress)
    assert rows_of(found) == [[*range(first, first + 1000)] for first in range(0, 9000, 1000)]
    assert bucket.requests()["GET 206"] == 1 + 9 + 9  # for the first rows, the survey, and the rows
    size = sum(file.size for file in found.files)
    assert progress == SurveyProgress(9, size, 9, size, 9000)


def test_a_survey_that_is_refused_closes_the_objects_that_it_requested_ahead(bucket: Bucket) -> None:
    bucket.put("n/0.jsonl", lines(0, 1))
    bucket.put("n/1.jsonl", gzip.compress(lines(0, 9)))
    bucket.put("n/2.jsonl", lines(0, 1))
    with pytest.raises(UsageError, match=r"n/1\.jsonl"):
        survey("gs://raw/n")


def test_copies_on_disk_are_few_and_one_that_is_open_outlives_its_place(bucket: Bucket) -> None:
    with store_access(Path(bucket.vertex.address.credentials_file)) as access:
        stores = Stores(access)
        versions = [bucket.put(f"{n}.gz", str(n).encode()) for n in range(6)]
        copies = [stores.copy(Address("gs", "raw", f"{n}.gz"), version, 1) for n, version in enumerate(versions)]
        assert [copy.read() for copy in copies] == [str(n).encode() for n in range(6)]
        before = bucket.requests()["GET 206"]
        stores.copy(Address("gs", "raw", "5.gz"), versions[5], 1).close()
        assert bucket.requests()["GET 206"] == before
        for copy in copies:
            copy.close()
        stores.close()


def test_parquet_costs_one_request_for_a_footer_and_few_for_the_rows(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(table(number * 1000, 1000), tmp_path / "x.parquet", row_group_size=400)
        bucket.put(f"p/{number}.parquet", tmp_path / "x.parquet")
    found = survey("gs://raw/p", chunk_rows=700)
    counts = bucket.requests()
    assert counts["HEAD 200"] == 3
    assert counts["GET 206"] == 3
    assert list(chain(*rows_of(found, [4, 0, 1, 2, 3]))) == [*range(2800, 3000), *range(2800)]
    assert bucket.requests()["GET 206"] - counts["GET 206"] <= 30


# Objects that are replaced.


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.gz"])
def test_i10_an_object_that_is_replaced_is_never_read_in_halves(name: str, bucket: Bucket, tmp_path: Path) -> None:
    forms = {"a.jsonl": lines(0, 9), "a.jsonl.gz": gzip.compress(lines(0, 9))}
    pq.write_table(table(0, 9), tmp_path / "a.parquet")
    bucket.put(name, forms.get(name, tmp_path / "a.parquet"))
    found = survey(f"gs://raw/{name}")
    assert changed(found) == []
    assert found_again(found, f"gs://raw/{name}") == (found, [])
    bucket.put(name, forms.get(name, tmp_path / "a.parquet"))
    with pytest.raises(Broken, match=rf"the input changed: gs://raw/{name} was replaced or deleted .* --fresh"):
        rows_of(found)
    assert changed(found)[0].startswith(f"gs://raw/{name} was replaced")
    assert found_again(found, f"gs://raw/{name}")[1] == [f"gs://raw/{name} was replaced"]
    store, key = store_at(f"gs://raw/{name}")
    store.delete(key)
    assert changed(found) == [f"gs://raw/{name} is missing"]


def test_a_damaged_object_is_named(bucket: Bucket) -> None:
    bucket.put("a.parquet", b"PAR1 and nothing else")
    with pytest.raises(UsageError, match=r"gs://raw/a.parquet is not a complete Parquet file"):
        survey("gs://raw/a.parquet")
    bucket.put("a.jsonl.gz", gzip.compress(lines(0, 99))[:-9])
    with pytest.raises(UsageError, match=r"gs://raw/a.jsonl.gz is damaged or cut short"):
        survey("gs://raw/a.jsonl.gz")


# The commands.


@pytest.mark.parametrize("processes", ["1", "2"])
def test_i10_a_run_over_objects_that_is_killed_and_resumed_is_that_over_the_same_files(
    processes: str, bucket: Bucket, tmp_path: Path
) -> None:
    """Two processes are forked, and read objects in both: nothing used a store before."""
    shell = Shell(tmp_path, bucket.variables)
    shell.write("job.py", JOB)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        content = lines(number * 800, 800, rest="x" * 17_000)
        (folder / f"{number}.jsonl").write_bytes(content)
        bucket.put(f"night/{number}.jsonl", content)
    address = bucket.vertex.address
    flags = ("--base-url", address.base_url, "--no-adaptive", "-c", "32", "--quiet", "--json")
    run = ("run", "job.py", *flags, "-i", "gs://raw/night/*.jsonl", "--processes", processes)
    for _ in range(2):
        with shell.started(*run) as child:
            enough = bucket.answers() + 300
            while bucket.answers() < enough and child.poll() is None:
                pass
            child.send_signal(signal.SIGKILL)
            child.wait(60)
            assert child.returncode == -signal.SIGKILL, "the kill came too late"
    bucket.control(revoke=True)
    with shell.started(*run) as child:
        done = ended(child, within_s=240)
    assert done.json.items() >= {"status": "complete", "ok": 2400}.items(), done
    assert bucket.answers() < 2400 + 3 * 64
    own = shell.output()
    assert [(row["id"], row["text"], row["status"]) for row in own] == [(n, f"text {n}", "ok") for n in range(2400)]
    bucket.put("night/1.jsonl", lines(0, 1))
    refused = shell.pipeline(*run)
    assert refused.code == 2
    assert "gs://raw/night/1.jsonl was replaced" in refused.err


def test_plan_show_and_reparse_read_objects_too(bucket: Bucket, tmp_path: Path) -> None:
    shell = Shell(tmp_path, bucket.variables)
    shell.write("job.py", JOB.replace('input="rows.jsonl"', 'input="gs://raw/rows.jsonl"'))
    bucket.put("rows.jsonl", lines(0, 3, secret="seen in the prompt only"))
    planned = shell.pipeline("plan", "job.py", "--json")
    assert planned.json["rows"] == 3
    done = shell.pipeline("run", "job.py", "--emulate", "--quiet", "--json")
    assert done.json["ok"] == 3, done
    shown = shell.pipeline("show", "out/a_job", "--rows", "1")
    assert "Say text 0" in shown.out
    shell.write("job.py", (tmp_path / "job.py").read_text().replace("answer: str", "answer: str | None"))
    assert shell.pipeline("reparse", "out/a_job", "--job", "job.py", "--json").json["ok"] == 3


def test_a_missing_permission_is_told_before_the_first_call(bucket: Bucket, tmp_path: Path) -> None:
    shell = Shell(tmp_path, bucket.variables)
    shell.write("job.py", JOB)
    bucket.put("rows.jsonl", lines(0, 3))
    bucket.control(bucket_faults={"403": 1.0}, bucket_fault_on="*")
    done = shell.pipeline("run", "job.py", "-i", "gs://raw/rows.jsonl", "--emulate", "--quiet")
    assert done.code == 7
    assert "gs://raw/rows.jsonl: access is denied, check the permissions of these credentials" in done.err
    assert not (tmp_path / "out").exists()
    assert "ya29" not in done.err + done.out
