"""The run folder: the names in it, a run's identity (its plan), its owner (the lock), and whether it may be resumed."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from pipeline import __version__
from pipeline.data import PARTS, is_part_name
from pipeline.faults import Broken, OutputInUse, UsageError
from pipeline.storage.durable import FILES, PRIVATE_FILE, TEMPORARY, FileSystem
from pipeline.store.address import local_path

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
PAGE = "_report.html"
"""Files in the output folder: what the last start wrote at its end, the marker of a complete dataset, the report."""

EVALUATION = "_eval"
REPEATS = "_repeats"
REFERENCE = "_ref"
"""Folders in the output folder of an evaluation: its results, the runs of its repeats, the run at another commit."""

RUN = "_run"
"""The folder of the run's state, in the output folder. The files with the following names are in it."""

PLAN = "plan.json"
JOURNAL = "journal.sqlite"
LOCK = "lock"
WORKERS = "workers"
REPLIES = "replies"
EVENTS = "events.jsonl"
STATE = "state.json"
TUNE = "tune.json"
RATES = "rates.json"
ADDRESS = "address"
INPUT = "input"
"""A folder: rows that were given in memory, as files that are named by their content."""
BATCH_FILES = "batch"
"""The beginning of the names of the input files of batch jobs, until the jobs are created."""

FORMAT = 3
"""Version of the run folder and its plan; other versions are refused. Since 3, the parts have their own folder."""

ORPHANS_S = 30.0
"""How long the worker processes of a killed run may take to end, in seconds."""

_KEPT = (LOCK, WORKERS, REPLIES, INPUT)
_FILES = (MANIFEST, SUCCESS, PAGE)
_BESIDE = (EVALUATION, REPEATS, REFERENCE)
_FOUND = frozenset(
    {
        "lost+found",
        ".DS_Store",
        ".Spotlight-V100",
        ".Trashes",
        ".fseventsd",
        ".gitkeep",
        ".keep",
        ".gitignore",
        ".snapshot",
        ".zfs",
        "Thumbs.db",
        "desktop.ini",
        "System Volume Information",
    }
)
"""Files of a fresh volume, a file manager or an empty folder under version control: not user data."""

_OURS = (RUN, PARTS, *_BESIDE, *_FILES, *(f".{name}{TEMPORARY}" for name in _FILES))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """The identity of a run: fixed when it is created, unchanged by every resume."""

    job_name: str
    job: Mapping[str, str]
    """The job's fingerprint, field by field."""
    target: str
    """The job file, or the input file that contains the requests."""
    survey: Mapping[str, Any]
    limit: int | None
    simulated: bool
    keep_replies: bool = True
    reparsing: bool = False
    """Whether a re-parse has begun and not finished: the schemas of the parts may then differ."""
    target_sha256: str | None = None
    """Hash of the job file at the last start: a changed file is not executed just because the folder names it."""
    charged_before: Mapping[str, Any] | None = None
    """What the run had been charged when rows were last appended: budgets count from there on."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__
    format: int = FORMAT

    def extends(self, before: RunIdentity) -> bool:
        """Whether this is the same run over more rows, the first of which are those of `before`.

        Its limit is larger, or rows were appended.
        """
        is_less_limited = before.limit is not None and (self.limit is None or self.limit > before.limit)
        return is_less_limited or len(self.survey.get("appended", ())) > len(before.survey.get("appended", ()))


class RunFolder:
    """An output folder and its `_run` folder. `name` is what messages call it. Raises `Broken` when the disk fails."""

    def __init__(self, output: Path, files: FileSystem = FILES, name: str | None = None) -> None:
        self.output = output
        self.name = name or str(output)
        self.run = output / RUN
        self.parts = output / PARTS
        self.files = files

    @property
    def journal(self) -> Path:
        """The path of the journal."""
        return self.run / JOURNAL

    @property
    def inputs(self) -> Path:
        """The folder of rows that were given in memory."""
        return self.run / INPUT

    def batch_input(self, wave: int, number: int) -> Path:
        """The path of the input file of a batch job."""
        return self.run / f"{BATCH_FILES}-{wave}-{number}.jsonl"

    def remove_batch_inputs(self) -> None:
        """Removes the input files of all batch jobs."""
        with self._writing("the output folder"):
            self.files.remove(self.run.glob(f"{BATCH_FILES}-*.jsonl"))

    def prepare(self) -> None:
        """Creates the folders. Raises `UsageError` when that fails, or when the folder contains anything else."""
        local_path(self.output)
        try:
            self.files.make_folder(self.output)
            if not self.run.exists():
                self._require_free()
            self.files.make_private(self.run)
            with tempfile.TemporaryFile(dir=self.run):
                pass  # unnamed, so that two simultaneous starts do not collide
        except FileExistsError as error:
            kind = "a link to nothing" if Path(error.filename).is_symlink() else "a file"
            message = f"{error.filename} is {kind}: choose another --output"
            raise UsageError(f"the output folder {self.output} cannot be written: {message}") from error
        except OSError as error:
            raise UsageError(f"the output folder {self.output} cannot be written: {error.strerror or error}") from error

    def _require_free(self) -> None:
        """Raises `UsageError` when the folder holds something other than a run."""
        _refuse_the_parts_of_a_run(self.output)
        found = [*self.output.iterdir(), *_entries(self.parts)]
        a_file = [] if self.parts.is_dir() else [self.parts]
        strange = [path.relative_to(self.output) for path in found if _is_strange(path) or path in a_file]
        if strange:
            raise UsageError(f"the output folder {self.output} holds other files ({strange[0]}): choose an empty one")
        if any(_is_part(path) for path in found):
            raise UsageError(f"{self.output} holds a dataset without its run state (_run): choose another --output")

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Exclusive ownership of the run; yields the descriptor of the lock that worker processes share.

        Raises `OutputInUse`, naming the owner.
        """
        with self._writing(LOCK):
            descriptor = self.files.open(self.run / LOCK, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            with self._writing(LOCK):
                if not _locks(descriptor):
                    raise OutputInUse(f"another run works on {self.name}: {_holder(descriptor)}")
                os.ftruncate(descriptor, 0)
                self.files.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode())
            with self._without_orphans() as workers:
                yield workers
        finally:
            os.close(descriptor)

    @contextmanager
    def _without_orphans(self) -> Iterator[int]:
        """A second lock, shared with worker processes: those of a killed run may go on writing for a moment."""
        with self._writing(WORKERS):
            descriptor = self.files.open(self.run / WORKERS, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            until = time.monotonic() + ORPHANS_S
            while not _locks(descriptor):
                if time.monotonic() > until:
                    raise OutputInUse(
                        f"worker processes of a killed run still work on {self.name}: try again, or end them"
                    )
                time.sleep(0.01)
            yield descriptor
        finally:
            os.close(descriptor)

    def running(self) -> str | None:
        """The process that holds the run's lock now, or None."""
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
        """Removes what a run wrote, and nothing else; the lock stays.

        The success marker goes first, because others wait for it, and the plan last: without a plan but with a
        journal, the next run would take these entries for its own. Parts go before the journal that lists them:
        without it, the next run would leave them among its own parts. Each step is durable before the next begins.
        """
        replies = self.run / REPLIES
        with self._writing("the output folder"):
            self.files.remove([self.output / name for name in _FILES])
            for folder in (self.output, self.parts):  # before format 3 the parts were in the output folder itself
                self.files.remove(path for path in _entries(folder) if _is_part(path))
            self.files.remove([self.journal])  # before its WAL: without that, it may be corrupt
            self.files.remove(self.run.glob(f"{JOURNAL}*"))
            of_workers = f"{self.journal.stem}-*"
            self.files.remove(self.run.glob(f"{of_workers}{self.journal.suffix}"))
            self.files.remove(self.run.glob(of_workers))
            self.files.remove(replies.glob("*"))
            self.files.remove(path for path in self.run.iterdir() if path.name not in _KEPT)

    def discard_inputs(self, *, but: Collection[str]) -> None:
        """Removes the files of rows that were given in memory, except those of these names."""
        with self._writing(INPUT):
            self.files.remove(path for path in _entries(self.inputs) if path.name not in but)

    def sweep(self) -> None:
        """Removes files that a killed run did not finish writing."""
        with self._writing("the output folder"):
            for folder in (self.output, self.run, self.run / REPLIES):
                self.files.remove(folder.glob(f".*{TEMPORARY}"))

    def load(self) -> RunIdentity | None:
        """The plan of the run in this folder; None when there is none yet.

        Raises `UsageError` when it cannot be read.
        """
        try:
            content = orjson.loads((self.run / PLAN).read_bytes())
            self._require_format(content)
            return _plan_of(content)
        except (FileNotFoundError, NotADirectoryError):
            if self.run.exists() and not self.run.is_dir():
                raise UsageError(f"{self.run} is not a folder; fix its path") from None
            _refuse_the_parts_of_a_run(self.output)
            return None
        except OSError as error:
            remedy = "only its owner can read it" if isinstance(error, PermissionError) else "fix its path"
            raise UsageError(f"{self.run / PLAN} cannot be read: {error.strerror or error}; {remedy}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.run / PLAN} is not a plan of this version ({error}): start over with --fresh"
            ) from error

    def require(self) -> RunIdentity:
        """The plan of the run in this folder. Raises `UsageError` when there is none, or it is not readable."""
        found = self.load()
        if found is None:
            raise UsageError(f"there is no run in {self.output}: {self.run / PLAN} does not exist")
        return found

    def _require_format(self, content: Any) -> None:
        """Raises `UsageError` when the plan has another format."""
        format_ = content.get("format") if isinstance(content, dict) else None
        if isinstance(format_, int) and format_ != FORMAT:
            raise UsageError(
                f"{self.name} holds a run in format {format_}, and this version reads format {FORMAT}: go on with it "
                f"in the version that wrote it, choose another --output, or start over with --fresh, which deletes it; "
                f"its Parquet files can be read as they are"
            )

    def save(self, plan: RunIdentity) -> None:
        """Writes the plan, durably, and creates the parts folder if it does not exist."""
        with self._writing(PARTS):
            self.files.make_folder(self.parts)
        with self._writing(PLAN):
            content = orjson.dumps(asdict(plan), option=orjson.OPT_INDENT_2)
            self.files.write_atomic(self.run / PLAN, content, mode=PRIVATE_FILE)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """A block in which every disk error is raised as `Broken`."""
        try:
            yield
        except OSError as error:
            message = f"{what} of {self.output} cannot be written: {error}"
            raise Broken(f"{message}; fix the disk, then run again") from error


def _refuse_the_parts_of_a_run(folder: Path) -> None:
    """Raises `UsageError` when the user named a run's parts folder instead of its output folder."""
    if folder.name == PARTS and (folder.parent / RUN / PLAN).is_file():
        raise UsageError(f"{folder} holds the parts of a run: name its output folder, {folder.parent}")


def differences(before: RunIdentity, now: RunIdentity) -> list[str]:
    """The differences that make `now` a different run from `before`, a sentence for each field."""
    found = [
        f"{name} changed: {_shown(before.job.get(name, ''), now.job.get(name, ''))}"
        for name in dict.fromkeys([*before.job, *now.job])
        if before.job.get(name) != now.job.get(name)
    ]
    if before.limit != now.limit and not now.extends(before):
        found.append(f"limit changed: {before.limit} -> {now.limit}")
    if before.simulated != now.simulated:
        found.append("it was answered by the emulator" if before.simulated else "it was answered by a real endpoint")
    return found


def _plan_of(content: dict[str, Any]) -> RunIdentity:
    plan = RunIdentity(
        **{field.name: content[field.name] for field in fields(RunIdentity) if field.name not in _ADDED_LATER}
    )
    later: dict[str, Any] = {name: content.get(name) for name in _ADDED_LATER}
    plan = replace(plan, **later)
    for name, kinds in _KINDS.items():
        if type(getattr(plan, name)) not in kinds:
            raise TypeError(f"its {name} has another type")
    if not all(isinstance(value, str) for value in plan.job.values()):
        raise TypeError("its job has fields of other types")
    datetime.fromisoformat(plan.created)
    return plan


_ADDED_LATER = ("target_sha256", "charged_before")
"""Fields that plans of earlier versions lack."""

_TEXT, _FLAG = (str,), (bool,)
_KINDS: Mapping[str, tuple[type, ...]] = {
    "job_name": _TEXT,
    "job": (dict,),
    "target": _TEXT,
    "survey": (dict,),
    "limit": (int, type(None)),
    "simulated": _FLAG,
    "keep_replies": _FLAG,
    "reparsing": _FLAG,
    "target_sha256": (str, type(None)),
    "charged_before": (dict, type(None)),
    "run_id": _TEXT,
    "created": _TEXT,
    "version": _TEXT,
    "format": (int,),
}
"""What the fields of a plan may be: it may be damaged, or come from anybody."""


def _shown(before: str, now: str) -> str:
    """Excerpts of both texts, starting shortly before their first difference."""
    pairs = zip(before, now, strict=False)
    same = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(before), len(now)))
    start = max(0, same - 20)
    return f"{_short(before, start)} -> {_short(now, start)}"


def _short(text: str, start: int) -> str:
    piece = " ".join(text[start : start + 60].split())
    return repr(("..." if start else "") + piece + ("..." if len(text) > start + 60 else ""))


def _is_strange(path: Path) -> bool:
    return path.name not in _OURS and not _is_part(path) and not path.name.startswith("._") and path.name not in _FOUND


def _is_part(path: Path) -> bool:
    return is_part_name(path.name.removeprefix(".").removesuffix(TEMPORARY))


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder; empty when it is not a folder."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    for _ in range(50):
        if text := os.pread(descriptor, 200, 0).decode("utf-8", "replace"):
            return text
        time.sleep(0.01)  # it holds the lock but has not written its name yet
    return "it does not say who"
