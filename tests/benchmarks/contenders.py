"""The contenders of the end-to-end benchmark: each asks every row and, but for the first, writes typed Parquet.

Run as `python -m tests.benchmarks.contenders NAME URL ROWS CONCURRENCY OUTPUT` in a process of its own, whose CPU
time is then the contender's.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from pathlib import Path

from pydantic import BaseModel

MODEL = "google/gemini-3.5-flash-lite"
SYSTEM = "You read one text and report the event that it announces."


class Event(BaseModel):
    name: str
    date: dt.date
    place: str
    guests: int


def messages(text: str) -> list[dict[str, str]]:
    """The conversation of every contender."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def rows(path: str) -> list[dict[str, str]]:
    """The input."""
    with Path(path).open("rb") as file:
        return [json.loads(line) for line in file]


async def raw_aiohttp(url: str, source: str, concurrency: int) -> None:
    """The floor: aiohttp and `json.loads`, nothing kept."""
    import aiohttp

    todo = iter(rows(source))
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> None:
            for row in todo:
                body = {"model": MODEL, "messages": messages(row["text"])}
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    json.loads(await response.read())

        await asyncio.gather(*(work() for _ in range(concurrency)))


async def by_hand(url: str, source: str, concurrency: int, output: Path) -> None:
    """What everyone starts with: a semaphore, `chat.completions.parse`, Parquet at the end."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from openai import AsyncOpenAI

    slots = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=url, api_key="none") as client:

        async def ask(row: dict[str, str]) -> dict[str, object]:
            async with slots:
                completion = await client.chat.completions.parse(
                    model=MODEL,
                    messages=messages(row["text"]),  # type: ignore[arg-type] # the SDK's own TypedDicts, spelled plainly
                    response_format=Event,
                )
            parsed = completion.choices[0].message.parsed
            return {**row, **(parsed.model_dump() if parsed else {})}

        done = await asyncio.gather(*(ask(row) for row in rows(source)))
    await asyncio.to_thread(output.mkdir, parents=True)
    pq.write_table(pa.Table.from_pylist(done), output / "part.parquet")


def ours(url: str, source: str, concurrency: int, output: Path, *flags: str) -> None:
    """The pipeline's own command line."""
    import os

    from pipeline.cli import main

    os.environ["OPENAI_API_KEY"] = "none"
    job = str(Path(__file__).with_name("job.py"))
    arguments = ["run", job, "-i", source, "-o", str(output), "-c", str(concurrency), "--base-url", url, "-q", "--json"]
    # Every round asks the same: the cache would answer from the second one on.
    sys.argv = ["pipeline", *arguments, "--no-cache", *flags]
    main()


if __name__ == "__main__":
    name, url, source, concurrency, output, *flags = sys.argv[1:]
    match name:
        case "raw":
            asyncio.run(raw_aiohttp(url, source, int(concurrency)))
        case "parse":
            asyncio.run(by_hand(url, source, int(concurrency), Path(output)))
        case _:
            ours(url, source, int(concurrency), Path(output), *flags)
