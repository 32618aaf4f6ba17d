"""Runs by batch for longer: all faults of a service at once, killed at any step, on machines that come and go.

`python -m tests.crash.batches --seed 7` prints its figures; `--memory 1000000` measures a large run instead.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel

from pipeline.data import Request
from pipeline.emulator.bucket.objects import Buckets
from pipeline.endpoint.batch.backend import BatchAnswer, BatchJob, BatchLimits
from pipeline.execution.batch.settings import BatchSettings
from pipeline.execution.batch.stage import BatchStage
from pipeline.execution.finish import finish
from pipeline.execution.start import open_run
from pipeline.storage.remote.lease import RENEW_S, TAKEOVER_S
from tests.batches import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    ROW_FAULTS,
    BatchService,
    FakeBackend,
    OnlineEndpoint,
    Time,
    carried_out,
)
from tests.crash import SEED
from tests.crash.small import RunPlace, Shape, rows_of
from tests.memory_store import BUCKET, Clock, Killed, MemoryStore, contents

ROWS = 5_000
KILLS = 20
PRICE = {"google/gemini-test": {"input": 1.0, "output": 2.0}}
EACH_USD = (INPUT_TOKENS * 1.0 + OUTPUT_TOKENS * 2.0) / 1e6
UNPAID = ("transient", "permanent", "missing", "disputed", "unknown", "keyless")
"""What the service does not bill, or what is not believed."""


@dataclass
class SoakFigures:
    """What a run under all faults came to."""

    kills: int = 0
    machines: int = 1
    jobs: int = 0
    online: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{ROWS} rows by {self.jobs} batch jobs: {self.kills} kills, {self.machines} machines, {self.online} rows "
            f"asked online, every row once, nothing submitted twice, half the price; {self.seconds:.0f} s"
        )


def soak(folder: Path, dice: random.Random, rows: int = ROWS, kills: int = KILLS) -> SoakFigures:
    """One run to its end. Raises `AssertionError`."""
    began, figures = time.monotonic(), SoakFigures()
    # A quarter, as those that cannot be assigned must stay below the share beyond which no answer is believed.
    faulty = dice.sample(range(rows), rows // 4)
    service = BatchService(
        faults={ordinal: dice.choice(ROW_FAULTS) for ordinal in faulty},
        limits=BatchLimits(rows * 2 // 5, 100_000_000),
        looks=2,
    )
    time_of_bucket, clock, endpoint = Clock(), Time(), OnlineEndpoint()
    buckets = Buckets([BUCKET], time_of_bucket)
    shape = Shape(rows=rows, chunk_rows=rows // 10, concurrency=16)
    place = RunPlace(folder / "machine-0", shape, prices=PRICE, max_tokens=50).prepare()
    done = False
    while not done:
        store, backend = MemoryStore(buckets), FakeBackend(service)
        if figures.kills < kills:
            at = dice.choice([1, 2, 3, 5, 8, 13, dice.randint(1, 60), dice.randint(1, 700)])
            lost = dice.random() < 0.5
            if dice.random() < 0.7:
                backend = FakeBackend(service, dies_at=at, answers_lost=lost)
            else:
                store = MemoryStore(buckets, dies_at=dice.randint(1, 30), answers_lost=lost)
        try:
            with open_run(place.job(), place.settings(), objects=store.objects()) as run:
                summary = carried_out(run, backend, endpoint, BatchSettings(poll_s=0.0), clock)
            done = summary.status == "complete"
        except (Killed, BaseExceptionGroup):
            if not (backend.dead or store.dead):
                raise
        if not done:
            figures.kills += 1
            time_of_bucket.now += RENEW_S + TAKEOVER_S + 1  # the killed one's lease may be taken over
            if dice.random() < 0.3:
                place = place.moved(folder / f"machine-{figures.machines}")
                place.folder.mkdir()
                figures.machines += 1
    _require_whole(buckets, rows, folder, service)
    paid = sum(service.faults.get(ordinal) not in UNPAID for ordinal in range(rows))
    assert summary.batch_calls == paid, (summary.batch_calls, paid)
    assert abs((summary.batch_cost_usd or 0.0) - paid * EACH_USD / 2) < 1e-6
    assert set(service.sent.values()) == {1}, "a row was submitted twice"
    figures.jobs, figures.online, figures.seconds = len(service.jobs), len(endpoint.asked), time.monotonic() - began
    return figures


def _require_whole(buckets: Buckets, rows: int, folder: Path, service: BatchService) -> None:
    found = []
    for key, data in sorted(contents(buckets).items()):
        if key.startswith("out/data/"):
            path = folder / "part.parquet"
            path.write_bytes(data)
            found += rows_of(path)
    assert [row["id"] for row in found] == list(range(rows)), "rows lost, doubled or out of order"
    for row in found:
        refused = service.faults.get(row["id"]) == "permanent"
        assert row["status"] == ("failed" if refused else "ok"), row
        assert refused or row["parsed"]["text"] == f"text {row['id']}"
    assert "out/_SUCCESS" in contents(buckets)


class DiskBackend:
    """A service that holds nothing in memory: each job is answered from its input file, in another order."""

    price_factor = 0.5
    traffic_type = "BATCH"
    limits = BatchLimits(200_000, 900_000_000)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def line(self, key: str, request: Request) -> bytes:
        return json.dumps({"key": key, "body": dict(request.payload)}).encode() + b"\n"

    async def submit(self, name: str, input_file: Path, *, inputs_key: str) -> BatchJob:
        await anyio.lowlevel.checkpoint()
        assert inputs_key
        (self._folder / name).hardlink_to(input_file)
        return BatchJob(name, name, "waiting")

    async def find(self, name: str) -> BatchJob | None:
        await anyio.lowlevel.checkpoint()
        return BatchJob(name, name, "waiting") if (self._folder / name).exists() else None

    async def get(self, handle: str) -> BatchJob:
        await anyio.lowlevel.checkpoint()
        return BatchJob(handle, handle, "succeeded")

    async def cancel(self, handle: str) -> None:
        raise NotImplementedError(handle)

    async def results(self, job: BatchJob) -> AsyncIterator[BatchAnswer]:
        with (self._folder / job.handle).open("rb") as file:
            for number, text in enumerate(file):
                if not number % 1000:
                    await anyio.lowlevel.checkpoint()
                line = json.loads(text)
                said = json.dumps({"text": line["body"]["messages"][-1]["content"], "nonce": "nonce-0-000000000000"})
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                body = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
                yield BatchAnswer(line["key"], json.dumps(body).encode(), None, b'{"response": {}}')


def large_run(folder: Path, rows: int) -> None:
    """A run of so many rows without faults; prints its peak of memory in MB, and its seconds."""
    began = time.monotonic()
    place = RunPlace(folder / "machine", Shape(rows=rows), prices=PRICE).prepare()
    (folder / "service").mkdir()
    with open_run(place.job(), place.settings(chunk_rows=None)) as run:

        async def work() -> None:
            stage = BatchStage(run, DiskBackend(folder / "service"), BatchSettings(poll_s=0.0))
            assert await stage.carry_out()

        anyio.run(work)
        summary = finish([run])[0]
    assert summary.status == "complete", summary
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rows} rows by {summary.batch_jobs} jobs: peak of {peak:.0f} MB, {time.monotonic() - began:.0f} s")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--memory", type=int, nargs="*", help="rows of large runs, each in a process of its own")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.one:
            large_run(Path(folder), given.one)
        elif given.memory:
            for rows in given.memory:
                subprocess.run([sys.executable, "-m", "tests.crash.batches", "--one", str(rows)], check=True)
        else:
            print(soak(Path(folder), random.Random(given.seed)))


if __name__ == "__main__":
    main()
