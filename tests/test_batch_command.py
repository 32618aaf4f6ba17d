"""`pipeline run --batch` and `pipeline cancel` against the emulator's jobs: what a user types, and what comes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from pipeline.emulator import Options
from pipeline.emulator.vertex import Vertex, emulated
from pipeline.storage.submissions import submissions_in
from tests.commands import JOB, ROOT, Done, Shell, ended

PLACE = "gs://bucket/nightly/out"
HOUR = 3600.0


class Batched:
    """An emulator whose jobs end when the test says so, and a machine that runs jobs there."""

    def __init__(self, shell: Shell, vertex: Vertex, portal: BlockingPortal) -> None:
        self.shell = shell
        self.vertex = vertex
        self.portal = portal

    @property
    def endpoint(self) -> tuple[str, ...]:
        address = self.vertex.address
        return ("--base-url", address.base_url, "--credentials", str(address.credentials_file))

    def arguments(self, *more: str, output: str = "out/a_job") -> tuple[str, ...]:
        bucket = () if output.startswith("gs://") else ("--batch-bucket", "gs://bucket/batch")
        given = (*self.endpoint, "--no-adaptive", "--quiet", "--json", "--batch-poll", "0.02")
        return ("run", "job.py", "-o", output, *given, "--batch", *bucket, *more)

    def run(self, *more: str, output: str = "out/a_job") -> Done:
        return self.shell.pipeline(*self.arguments(*more, output=output))

    def advance(self, seconds: float = HOUR) -> None:
        async def move() -> None:
            await self.vertex.control(batch_advance=seconds)

        self.portal.call(move)

    def stats(self) -> dict[str, Any]:
        return dict(self.portal.call(self.vertex.stats))

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs that the emulator has."""

        async def listed() -> Any:
            parent = self.vertex.address.base_url.partition("/endpoints/")[0].partition("/v1")[2]
            path = f"/v1{parent}/batchPredictionJobs?pageSize=100"
            token = await self.vertex.token()
            headers = {"Authorization": f"Bearer {token}"}
            return (await self.vertex.request("GET", self.vertex.address.origin + path, headers=headers)).json()

        return list(self.portal.call(listed).get("batchPredictionJobs", ()))


@contextmanager
def batched(folder: Path, root: Path | None = None, **options: Any) -> Iterator[Batched]:
    opening = emulated(Options(buckets=("bucket",), **options))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(opening) as vertex:
        variables = {
            "STORAGE_EMULATOR_HOST": vertex.address.origin,
            "PIPELINE_STATE_DIR": str(folder / "state"),
            "GOOGLE_APPLICATION_CREDENTIALS": str(vertex.address.credentials_file),
        }
        shell = Shell(root or folder, variables)
        if root is None:
            shell.write("job.py", JOB)
            shell.rows(20)
        yield Batched(shell, vertex, portal)


@pytest.fixture
def manual(tmp_path: Path) -> Iterator[Batched]:
    with batched(tmp_path, batch_clock="manual", batch_echo="both") as found:
        yield found


def awaited(child: subprocess.Popen[str], has_happened: Callable[[], bool]) -> None:
    """Returns once it has; fails if the process ends before, or in two minutes."""
    until = time.monotonic() + 120.0
    while not has_happened():
        assert child.poll() is None, ended(child)
        assert time.monotonic() < until
        time.sleep(0.02)


def require_whole(shell: Shell, rows: int = 20, output: str = "out/a_job") -> None:
    found = shell.output(output)
    assert [row["id"] for row in found] == list(range(rows))
    assert {row["status"] for row in found} == {"ok"}
    assert (shell.folder / output / "_SUCCESS").exists()


def test_submitted_waited_for_and_collected(manual: Batched) -> None:
    """With --detach: 0 once the jobs are submitted, 75 while they work, and then the dataset at half the price."""
    submitted = manual.run("--detach")
    assert (submitted.code, submitted.json["status"], submitted.json["batch_jobs_open"]) == (0, "submitted", 1)
    waiting = manual.run("--detach")
    assert (waiting.code, waiting.json["status"]) == (75, "stopped")
    assert "have not ended" in waiting.json["reason"]
    status = manual.shell.pipeline("status", "out/a_job")
    assert f"batch     {manual.jobs()[0]['displayName']}: 20 rows, waiting when last looked at" in status.out
    assert "stopped: batch jobs have not ended" in status.out
    manual.advance()
    done = manual.run("--detach")
    assert (done.code, done.json["status"], done.json["batch_calls"], done.json["requests"]) == (0, "complete", 20, 0)
    require_whole(manual.shell)
    online = manual.shell.pipeline("run", "job.py", *manual.endpoint, "-o", "online", "--quiet", "--json")
    assert done.json["run_cost_usd"] is None or done.json["run_cost_usd"] == online.json["cost_usd"] / 2
    assert [row["parsed"] for row in manual.shell.output()] == [row["parsed"] for row in manual.shell.output("online")]
    assert {row["response"]["traffic_type"] for row in manual.shell.output()} == {"BATCH"}
    assert len(manual.jobs()) == 1


def test_b6_open_jobs_are_neither_asked_online_nor_forgotten(manual: Batched) -> None:
    manual.run("--detach")
    online = manual.shell.pipeline("run", "job.py", *manual.endpoint, "--quiet")
    assert online.code == 2
    assert "the answers of 1 batch jobs are not collected yet" in online.err
    fresh = manual.run("--fresh")
    assert fresh.code == 2
    assert "`pipeline cancel out/a_job` ends them" in fresh.err


def test_cancelled_jobs_are_collected_as_far_as_they_are_and_the_rest_is_asked_online(manual: Batched) -> None:
    manual.run("--detach")
    cancelled = manual.shell.pipeline("cancel", "out/a_job")
    assert cancelled.code == 0, cancelled
    assert "cancelling" in cancelled.out
    manual.advance()
    done = manual.run()
    assert (done.code, done.json["requests"]) == (0, 20 - done.json["batch_calls"])
    require_whole(manual.shell)
    nothing = manual.shell.pipeline("cancel", "out/a_job", "--json")
    assert nothing.json == {"cancelled": []}


def test_b1_a_run_that_is_killed_while_it_waits_is_collected_by_another_machine(manual: Batched) -> None:
    """The records in the bucket are enough: no second job, and the same dataset."""
    with manual.shell.started(*manual.arguments(output=PLACE)) as child:
        awaited(child, lambda: bool(manual.jobs()))
        jobs = manual.jobs()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    manual.advance()
    elsewhere = manual.run("--state-dir", "elsewhere", output=PLACE)
    assert (elsewhere.code, elsewhere.json["status"], elsewhere.json["batch_calls"]) == (0, "complete", 20)
    assert len(manual.jobs()) == 1
    status = manual.shell.pipeline("status", PLACE, "--json")
    assert status.json["batch"] == [
        {
            "name": jobs[0]["displayName"],
            "rows": 20,
            "state": "succeeded",
            "progress": "collected",
            "answered": 20,
            "message": None,
        }
    ]


def test_a_signal_ends_the_wait_and_names_the_jobs(manual: Batched) -> None:
    with manual.shell.started(*manual.arguments()) as child:
        journal = manual.shell.folder / "out/a_job/_run/journal.sqlite"
        awaited(child, lambda: journal.exists() and any(one.handle for one in submissions_in(journal)))
        child.send_signal(signal.SIGTERM)
        done = ended(child)
    assert (done.code, done.json["reason"], done.json["batch_jobs_open"]) == (143, "SIGTERM", 1)
    assert manual.jobs()[0]["state"] == "JOB_STATE_PENDING"


def test_b2_every_fault_of_the_service_at_once(tmp_path: Path) -> None:
    rows = {f"row_{kind}": 0.05 for kind in ("failed", "missing", "doubled", "unknown_key", "no_candidates", "cut")}
    # The job exists, and its creator does not know. Refused requests cost seconds: the backend's tests have them.
    requests = {"create_lost": 1.0}
    with batched(
        tmp_path, batch_delay=0.01, batch_echo="labels", batch_faults={**rows, **requests, "job_partial": 1.0}
    ) as found:
        found.shell.rows(200)
        done = found.run("--set", "max_tokens=500")
        assert done.code == 0, done
        require_whole(found.shell, 200)
        assert len(found.jobs()) == 1
        assert done.json["batch_calls"] >= 100
        assert done.json["requests"] >= 20  # a tenth of the rows was not even begun


def test_a_server_with_openais_batches_needs_no_bucket(tmp_path: Path) -> None:
    with batched(tmp_path, batch_delay=0.01) as found:
        shell = Shell(tmp_path, {"OPENAI_API_KEY": "sk-emulated"})
        url = f"{found.vertex.address.origin}/v1"
        given = ("run", "job.py", "--base-url", url, "--model", "gpt-test", "--quiet", "--json")
        done = shell.pipeline(*given, "--batch", "--batch-poll", "0.02")
        assert (done.code, done.json["status"], done.json["batch_calls"], done.json["requests"]) == (
            0,
            "complete",
            20,
            0,
        )
        require_whole(shell)
        assert {row["response"]["traffic_type"] for row in shell.output()} == {"BATCH"}


def test_a_stuck_job_is_cancelled_and_its_rows_are_asked_online(tmp_path: Path) -> None:
    with batched(tmp_path, batch_delay=0.01, batch_faults={"job_stuck": 1.0}) as found:
        done = found.run("--batch-wait", "1s")
        assert (done.code, done.json["status"], done.json["requests"]) == (0, "complete", 20)
        require_whole(found.shell)


BY_BATCH = [
    "draw_pictures", "extract_events", "extract_invoices", "learn_from_examples", "listen_to_recordings", "read_charts",
    "read_documents", "solve_puzzles", "sort_tickets",
]  # fmt: skip
REFUSED = {"answer_questions": "runs tools", "summarise_events": "streams", "check_facts": "tier="}


def test_every_job_has_the_same_values_by_batch_as_online(tmp_path: Path) -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("eval_")}
    assert jobs == {*BY_BATCH, *REFUSED}
    with batched(tmp_path, ROOT, batch_delay=0.01) as found:
        for name in BY_BATCH:
            given = (f"jobs/{name}.py", *found.endpoint, "--limit", "4", "--quiet", "--json")
            batch = ("--batch", "--batch-bucket", f"gs://bucket/{name}", "--batch-poll", "0.02")
            online = found.shell.pipeline("run", *given, "-o", str(tmp_path / "online" / name))
            asked = found.shell.pipeline("run", *given, *batch, "-o", str(tmp_path / "batch" / name))
            assert (online.code, asked.code) == (0, 0), (name, online, asked)
            assert asked.json["batch_calls"] == online.json["rows"], name
            assert _values(tmp_path / "batch" / name) == _values(tmp_path / "online" / name), name


def _values(output: Path) -> list[Any]:
    (part,) = (output / "data").glob("*.parquet")
    return [row["parsed"] for row in pq.ParquetFile(part).read().to_pylist()]


@pytest.mark.parametrize("name", REFUSED)
def test_a_job_that_cannot_be_asked_by_batch_is_refused(manual: Batched, name: str) -> None:
    done = manual.shell.pipeline("run", str(ROOT / f"jobs/{name}.py"), *manual.endpoint, "--batch", "-o", "out/x")
    assert done.code == 2
    assert REFUSED[name] in done.err
    assert not (manual.shell.folder / "out/x").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--detach",), "--detach belongs to --batch"),
        (("--batch",), "--batch-bucket gs://BUCKET"),
        (("--batch", "--batch-bucket", "s3://b"), "--batch-bucket is an address in Cloud Storage"),
        (("--batch", "--batch-bucket", "gs://b", "--batch-wait", "8"), "a time with its unit"),
        (("--batch", "--emulate", "--base-url", ""), "--base-url"),
        (("--batch", "--emulate", "--detach"), "start `pipeline emulate`"),
        (("--batch", "--batch-bucket", "gs://b", "--location", "a", "--location", "b"), "name one --location"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(3)
    done = shell.pipeline("run", "job.py", "--project", "p", *arguments)
    assert done.code == 2
    assert said in done.err


def test_plan_shows_both_prices(tmp_path: Path) -> None:
    shell = Shell(ROOT, {})
    done = shell.pipeline("plan", "jobs/extract_events.py", "--batch", "--json", "-o", str(tmp_path / "out"))
    (line,) = done.out.splitlines()
    facts = json.loads(line)
    assert facts["batch_cost_usd"] == pytest.approx(facts["cost_usd"] / 2)
    assert facts["batch_saves_usd"] == pytest.approx(facts["cost_usd"] / 2)
