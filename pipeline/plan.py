"""The run folder: what a run is (its plan), who works on it (its lock), and whether it may be resumed."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from pipeline import __version__, disk
from pipeline.faults import Misuse

PLAN = "plan.json"
JOURNAL = "journal.sqlite"
LOCK = "lock"
_FILES = ("_manifest.json", "_SUCCESS")
_OURS = ("_run", *_FILES, *(f".{name}{disk.TEMPORARY}" for name in _FILES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is: fixed when it is created, the same at every resume."""

    job_name: str
    job: Mapping[str, str]
    """The job's fingerprint, field by field."""
    target: str
    """The job file, or the input that carries its requests."""
    survey: Mapping[str, Any]
    limit: int | None
    simulated: bool
    keep_replies: bool = True
    reparsing: bool = False
    """Whether a re-parse has begun that is not finished: the parts may then differ in their schema."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__


class RunFolder:
    """An output folder and the `_run` folder in it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.run = output / "_run"

    @property
    def journal(self) -> Path:
        """Where the journal is."""
        return self.run / JOURNAL

    def prepare(self) -> None:
        """Makes the folders. Raises `Misuse` when that cannot be, or when the folder belongs to something else."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            strangers = [path.name for path in self.output.iterdir() if path.name not in _OURS and not _is_part(path)]
            parts = any(_is_part(path) for path in self.output.iterdir())
            if strangers and not self.run.exists():
                raise Misuse(f"the output folder {self.output} holds other files ({strangers[0]}): choose an empty one")
            if parts and not self.run.exists():
                raise Misuse(f"{self.output} holds a dataset without its run state (_run): choose another --output")
            disk.make_private(self.run)
            with tempfile.TemporaryFile(dir=self.run):
                pass  # nameless, so that two starts at once do not meet in it
        except OSError as error:
            raise Misuse(f"the output folder {self.output} cannot be written: {error.strerror or error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The run, for us alone. Raises `Misuse` that names who has it."""
        descriptor = os.open(self.run / LOCK, os.O_RDWR | os.O_CREAT, disk.PRIVATE_FILE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Misuse(f"another run works on {self.output}: {_holder(descriptor)}") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def running(self) -> str | None:
        """Who works on the run now, or None."""
        try:
            descriptor = os.open(self.run / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(descriptor)
        finally:
            os.close(descriptor)
        return None

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else; the lock stays."""
        for path in self.output.iterdir():
            if _is_part(path) or path.name in _FILES:
                path.unlink()
        for path in self.run.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def sweep(self) -> None:
        """Removes files that a killed run had not finished writing."""
        for folder in (self.output, self.run, self.run / "replies"):
            for path in folder.glob(f".*{disk.TEMPORARY}"):
                path.unlink()

    def load(self) -> Plan | None:
        """The plan of the run in this folder; None when there is none yet. Raises `Misuse` when it is not readable."""
        try:
            content = orjson.loads((self.run / PLAN).read_bytes())
            return Plan(**{field.name: content[field.name] for field in fields(Plan)})
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Misuse(
                f"{self.run / PLAN} is not a plan of this version ({error}): start over with --fresh"
            ) from error

    def save(self, plan: Plan) -> None:
        """Writes the plan, durably."""
        disk.write(self.run / PLAN, orjson.dumps(asdict(plan), option=orjson.OPT_INDENT_2), mode=disk.PRIVATE_FILE)


def differences(before: Plan, now: Plan) -> list[str]:
    """What makes `now` another run than `before`, a sentence for each field."""
    found = [
        f"{name} changed: {_shown(before.job.get(name, ''), now.job.get(name, ''))}"
        for name in dict.fromkeys([*before.job, *now.job])
        if before.job.get(name) != now.job.get(name)
    ]
    if before.limit != now.limit:
        found.append(f"limit changed: {before.limit} -> {now.limit}")
    if before.simulated != now.simulated:
        found.append("it was answered by the emulator" if before.simulated else "it was answered by a real endpoint")
    return found


def _shown(before: str, now: str) -> str:
    """The two texts from shortly before where they part."""
    pairs = zip(before, now, strict=False)
    same = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(before), len(now)))
    start = max(0, same - 20)
    return f"{_short(before, start)} -> {_short(now, start)}"


def _short(text: str, start: int) -> str:
    piece = " ".join(text[start : start + 60].split())
    return repr(("..." if start else "") + piece + ("..." if len(text) > start + 60 else ""))


def _is_part(path: Path) -> bool:
    name = path.name.removeprefix(".").removesuffix(disk.TEMPORARY)
    return name.startswith("part-") and name.endswith(".parquet")


def _holder(descriptor: int) -> str:
    for _ in range(50):
        if text := os.pread(descriptor, 200, 0).decode("utf-8", "replace"):
            return text
        time.sleep(0.01)  # it has the lock, and has not signed it yet
    return "it does not say who"
