"""A small run of several chunks, whose endpoint gives every answer a nonce and writes it down before it is given.

A row's nonce says which of several answers was recorded; one that changes is a result that was replaced. The notes of
the endpoint survive `kill -9`: they are in the system's hands before the answer is in the pipeline's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline import Job
from pipeline.data import PARTS, Reply, Request, Usage
from pipeline.endpoint.connection import Connect, OpenEndpoint
from pipeline.execution.finish import Summary, finish
from pipeline.execution.settings import Settings
from pipeline.execution.start import open_run
from pipeline.faults import Refused
from pipeline.policy import Shutdown
from pipeline.policy.compose import RunLimits
from pipeline.storage.durable import FILES, FileSystem

PART = re.compile(r"out/(data/part-\d+\.parquet|_run/replies/part-\d+\.replies)")
"""What a sealed part is made of: its rows, and the replies kept beside them."""

_NONCE = re.compile(r"nonce-\d+-[0-9a-f]{12}")
_NEVER = "nonce-of-no-answer"


class SmallAnswer(BaseModel):
    """What an answer holds."""

    text: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the run is."""

    rows: int = 20
    chunk_rows: int = 7
    concurrency: int = 3
    pause_s: float = 0.002


SHAPE = Shape()


class RunPlace:
    """The folder of a run: its input (or another place's), its output, and the notes of its endpoint."""

    def __init__(self, folder: Path, shape: Shape = SHAPE, rows: Path | None = None, **job: Any) -> None:
        self.folder = folder
        self._job = job
        self.shape = shape
        self.rows = rows or folder / "rows.jsonl"
        self.output = folder / "out"
        self.notes = folder / "notes"

    def prepare(self) -> RunPlace:
        """Writes the input."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": number, "text": f"text {number}"}) for number in range(self.shape.rows)]
        self.rows.write_text("".join(line + "\n" for line in lines))
        return self

    def job(self) -> Job:
        """Every seventh of its rows is refused."""
        fields: dict[str, Any] = {"name": "small", "model": "google/gemini-test", "keep": ["id"], "max_failed": 0.9}
        return Job(**{**fields, "user": "{{ text }}", "schema": SmallAnswer, "input": self.rows, **self._job})

    def moved(self, folder: Path) -> RunPlace:
        """The same run in another folder, with the same input."""
        return RunPlace(folder, self.shape, self.rows, **self._job)

    def with_job(self, **changes: Any) -> RunPlace:
        """The same place with another job."""
        return RunPlace(self.folder, self.shape, self.rows, **{**self._job, **changes})

    def settings(self, **changes: Any) -> Settings:
        bounds = RunLimits(concurrency=self.shape.concurrency, adaptive=False)
        fields: dict[str, Any] = {"bounds": bounds, "chunk_rows": self.shape.chunk_rows, "limit": self.shape.rows}
        return Settings(output=self.output, grace_s=5.0, **{**fields, **changes})

    def connect(self, stop: Shutdown, stop_after: int | None) -> Connect:
        """Opens the endpoint that gives nonces, and asks for the stop after so many answers."""

        @asynccontextmanager
        async def connect() -> AsyncIterator[Sequence[OpenEndpoint]]:
            descriptor = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            answers = count(1)

            async def ask(request: Request) -> Reply:
                await anyio.sleep(self.shape.pause_s)
                if next(answers) == stop_after:
                    stop.request(signal.SIGTERM)
                return self._answer(request, descriptor)

            try:
                yield [OpenEndpoint("small", 1.0, ask)]
            finally:
                os.close(descriptor)

        return connect

    def _answer(self, request: Request, notes: int) -> Reply:
        ordinal = request.ordinal
        nonce = f"nonce-{ordinal}-{os.urandom(6).hex()}"
        note = {"said": [ordinal, nonce], "kept": _kept_now(self.output / "_run" / "journal.sqlite")}
        os.write(notes, (json.dumps(note) + "\n").encode())
        if ordinal % 7 == 6:
            raise Refused(f"refused: {nonce}", http_status=400)
        content = json.dumps({"text": request.payload["messages"][-1]["content"], "nonce": nonce})
        message = {"role": "assistant", "content": content}
        body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "model": "google/x"}
        return Reply(json.dumps(body).encode(), usage=Usage(3, 5))

    def said(self) -> dict[int, list[str]]:
        """What the endpoint has answered, by row, in order."""
        found: dict[int, list[str]] = {}
        for note in self._noted():
            ordinal, nonce = note["said"]
            found.setdefault(ordinal, []).append(nonce)
        return found

    def seen_kept(self) -> set[int]:
        """The rows that were seen recorded at some time while the endpoint answered."""
        return {ordinal for note in self._noted() for ordinal in note["kept"]}

    def _noted(self) -> Iterator[dict[str, Any]]:
        if self.notes.exists():
            yield from (json.loads(line) for line in self.notes.read_text().splitlines())


def start(place: RunPlace, files: FileSystem = FILES, *, stop_after: int | None = None, **changes: Any) -> Summary:
    """One start of the run, to its end. Raises what `open_run` and the engine raise."""
    with open_run(place.job(), place.settings(**changes), files=files) as run:
        anyio.run(run.execute, place.connect(run.context.stop, stop_after))
        return finish([run])[0]


def _kept_now(journal: Path) -> list[int]:
    """The rows that are recorded, asked of the journal of a run at work."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
        parts = [json.loads(part) for (part,) in database.execute("SELECT part FROM parts")]
        entries = [ordinal for (ordinal,) in database.execute("SELECT ordinal FROM entries")]
    sealed = [ordinal for part in parts for ordinal in range(part["first"], part["first"] + part["rows"])]
    return sorted({*sealed, *entries})


# What is on the disk, read without the pipeline.


def recorded(output: Path) -> dict[int, str]:
    """The nonce of every row that is recorded, in a sealed part or in the journal."""
    with _journal(output / "_run") as journal:
        if journal is None:
            return {}
        entries = journal.execute("SELECT ordinal, meta, body FROM entries").fetchall()
        parts = [json.loads(part) for (part,) in journal.execute("SELECT part FROM parts")]
    rows = {ordinal: nonce_in((body or meta).decode()) for ordinal, meta, body in entries}
    for part in parts:
        assert (output / "_run" / "replies" / f"{Path(part['name']).stem}.replies").exists(), "kept replies are lost"
        rows |= dict(enumerate(nonces_of(output / PARTS / part["name"], part["sha256"]), part["first"]))
    return rows


@contextmanager
def _journal(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """The journal, if it has its tables: a copy of it where nobody works on it, for opening it would mend it."""
    path = folder / "journal.sqlite"
    if not path.exists():
        yield None
        return
    with tempfile.TemporaryDirectory(dir=folder.parent.parent) as copy:
        for suffix in ("", "-wal"):
            if (source := Path(f"{path}{suffix}")).exists():
                shutil.copy(source, copy)
        with closing(sqlite3.connect(Path(copy) / path.name)) as database:
            has_tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'parts'").fetchone()
            yield database if has_tables else None


def nonces_of(part: Path, sha256: str | None = None) -> list[str]:
    """The nonces in a part, row by row. Raises `AssertionError` when its bytes are not those that were recorded."""
    if sha256 is not None:
        assert hashlib.sha256(part.read_bytes()).hexdigest() == sha256, f"{part.name} holds other bytes"
    return [nonce_in(json.dumps([row["parsed"], row["error"]])) for row in rows_of(part)]


def rows_of(part: Path) -> list[dict[str, Any]]:
    """The rows of a part, with its checksums checked."""
    with pq.ParquetFile(part, page_checksum_verification=True) as file:
        # In this thread: what has made threads cannot be forked safely.
        return list(file.read(use_threads=False).to_pylist())


def nonce_in(text: str) -> str:
    found = _NONCE.search(text)
    return found.group() if found else _NEVER


def require_whole(place: RunPlace) -> None:
    """Every row is there once, in order, with an answer that was given to it. Raises `AssertionError`."""
    parts = sorted((place.output / PARTS).glob("part-*.parquet"))
    rows = [row for part in parts for row in rows_of(part)]
    assert [row["id"] for row in rows] == list(range(place.shape.rows)), "rows lost, doubled or out of order"
    said, found = place.said(), [nonce for part in parts for nonce in nonces_of(part)]
    for ordinal, (row, nonce) in enumerate(zip(rows, found, strict=True)):
        assert nonce in said[ordinal], f"row {ordinal} holds an answer that was not given to it: {nonce}"
        assert row["status"] == ("failed" if ordinal % 7 == 6 else "ok")
        assert row["parsed"] is None or row["parsed"]["text"].endswith(f"text {ordinal}")
    require_finished(place.output)


def require_finished(output: Path) -> None:
    """The marker is there, and the manifest names just the parts that are there, byte for byte."""
    assert (output / "_SUCCESS").exists()
    manifest = json.loads((output / "_manifest.json").read_bytes())
    assert manifest["status"] == "complete"
    named = {part["name"]: part["sha256"] for part in manifest["parts"]}
    parts = (output / PARTS).glob("part-*.parquet")
    there = {f"{PARTS}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in parts}
    assert named == there, "the manifest names other parts than there are"
