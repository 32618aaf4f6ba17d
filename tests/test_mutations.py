"""Any type at any path of a reply is a value or a fault of its row, from the endpoint to the sealed part.

`python -m tests.test_mutations 100000` is the long run of it.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from pipeline import Job
from pipeline.data import PARTS, Entry, Failure, Reply, Request
from pipeline.endpoint.client import Endpoint, EndpointAddress, open_endpoint
from pipeline.endpoint.prices import Price, Prices
from pipeline.endpoint.token_source import ApiKey
from pipeline.faults import Fault
from pipeline.policy import Account, Shutdown, ToolLimits, charged, repairing, with_tools
from pipeline.storage.codec import decode, encode
from pipeline.storage.dataset import Dataset
from pipeline.storage.kept_replies import kept_replies
from pipeline.totals.counters import Counters
from tests.mutations import script
from tests.servers import scripted

pytestmark = pytest.mark.anyio

ROWS = 500
"""Rows of one part."""


class Out(BaseModel):
    word: str
    size: int


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sun in {city}"


async def now() -> str:
    """The time now."""
    return "12:00"


TYPED = Job(name="typed", model="google/gemini-2.5-pro", user="x", schema=Out, tools=[weather, now])
PLAIN = Job(name="plain", model="google/own", user="x", tools=[weather, now], stream=True, transcript=True)
PRICES = Prices({"google/own": Price(input=1.0, output=2.0, cached=0.5)})


async def entry_of(job: Job, endpoint: Endpoint, number: int) -> Entry:
    """What is recorded of a row, asked as a run asks it."""
    tools = ToolLimits(turns=3, calls=4, timeout_s=5.0)
    paid = charged(endpoint.ask, Account(PRICES, Counters(), Shutdown()))
    ask = with_tools(paid, job.tool_list, tools, transcript=job.transcript)
    ask = repairing(ask, job.outcome, job.repairs)
    payload = {**job._parameters, "max_tokens": 100, "messages": [{"role": "user", "content": f"row {number}"}]}
    try:
        return await ask(Request(number, payload))
    except Fault as fault:
        return fault


async def sealed(job: Job, first: int, rows: int, folder: Path) -> Counter[str]:
    """Asks rows, records and seals them, and reads them back; how they ended."""
    entries: dict[int, Entry] = {}

    async def work(endpoint: Endpoint, numbers: range) -> None:
        for number in numbers:
            entries[number] = await entry_of(job, endpoint, number)

    target = scripted(script)
    async with (
        target as server,
        open_endpoint(
            EndpointAddress.url(server.base_url), ApiKey("sk-canary-of-the-mutations"), connections=8, timeout_s=20.0
        ) as endpoint,
        anyio.create_task_group() as tasks,
    ):
        for lane in range(8):
            tasks.start_soon(work, endpoint, range(first + lane, first + rows, 8))
    return written(job, first, entries, folder)


def written(job: Job, first: int, entries: dict[int, Entry], folder: Path) -> Counter[str]:
    """Every entry through the journal's form into a part, and how its rows ended; the same before and after."""
    stored = [(number, decode(*encode(entries[number]))) for number in sorted(entries)]
    kept = pa.RecordBatch.from_pydict({"id": [number for number, _ in stored]})
    dataset = Dataset(folder, kept.schema, job.reader, {})
    for name in ("_run", PARTS):
        (folder / name).mkdir(exist_ok=True)
    dataset.seal(first, first, [kept], stored, replies=True)
    assert [number for number, _ in kept_replies(folder, first)] == [number for number, _ in stored]
    rows = pq.read_table(folder / PARTS / f"part-{first:06d}.parquet", columns=["status", "error"]).to_pylist()
    ends = Counter[str]()
    for (number, _), row in zip(stored, rows, strict=True):
        live = job.outcome(number, entries[number])
        kind = type(live.fault).__name__ if isinstance(live, Failure) else "ok"
        assert kind == (row["error"]["type"] if row["error"] else "ok")
        ends[kind] += 1
    return ends


@pytest.mark.parametrize("job", [TYPED, PLAIN], ids=["typed", "streamed text"])
async def test_h8a_any_type_at_any_path_is_a_value_or_a_fault_of_its_row(job: Job, tmp_path: Path) -> None:
    """Nothing but a fault is ever raised, by the endpoint, tools, repairs, prices, the journal or a part."""
    ends = Counter[str]()
    for first in range(0, 1500, ROWS):
        ends += await sealed(job, first, ROWS, tmp_path)
    assert ends.total() == 1500
    assert {"ok", "Unparsable", "Unavailable", "Refused", "Truncated"} <= ends.keys()


async def test_h8a_no_mutation_at_all_is_a_value(tmp_path: Path) -> None:
    """The bodies that the mutations start from are good: else they would show nothing."""
    async with (
        scripted(script) as server,
        open_endpoint(EndpointAddress.url(server.base_url), ApiKey("k"), connections=1, timeout_s=20.0) as endpoint,
    ):
        replies = [await entry_of(TYPED, endpoint, number) for number in range(40)]
    assert sum(isinstance(reply, Reply) for reply in replies) > 20
    assert tmp_path


async def soak(rows: int) -> Counter[str]:
    """So many mutations, half of them streamed."""
    ends = Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        for first in range(0, rows, ROWS):
            ends += await sealed((TYPED, PLAIN)[first // ROWS % 2], first, ROWS, Path(scratch))
    return ends


if __name__ == "__main__":
    print(dict(anyio.run(soak, int(sys.argv[1]))))
