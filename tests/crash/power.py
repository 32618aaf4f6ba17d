"""The power cut, modelled: what a disk may hold after it, given the calls that were made before.

A run is recorded through the seam of `pipeline.storage.durable`. At any call the power may go: of what was written and
not synced, all, nothing, a beginning or a mixture with stale sectors is there; of the names that were made, moved or
removed and whose folder was not synced, a beginning (a file system with a log of metadata) or any subset. SQLite keeps
its promise: a commit that returned is there, and the folder of a new log was synced with it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage.durable import FileSystem
from tests.crash.calls import SystemCall, tapped

JOURNAL = "out/_run/journal.sqlite"
SECTOR = 512

Tree = dict[str, bytes | None]
"""Files by their path, folders as None."""


@dataclass(frozen=True, slots=True)
class JournalFiles:
    """The journal's two files at one moment."""

    database: bytes | None = None
    log: bytes = b""


@dataclass(frozen=True, slots=True)
class Step:
    """A call that was carried out, and the journal just before it. `path` is of a folder when `folder`."""

    name: str
    path: str
    target: str = ""
    data: bytes = b""
    makes: bool = False
    folder: bool = False
    journal: JournalFiles = JournalFiles()


@dataclass(frozen=True, slots=True)
class Log:
    """What was there before a run, the steps of the run, and the journal after them."""

    before: Tree
    steps: tuple[Step, ...]
    journal: JournalFiles

    def journal_at(self, at: int) -> JournalFiles:
        """The journal when so many steps were done."""
        return self.steps[at].journal if at < len(self.steps) else self.journal


def tree_of(folder: Path) -> Tree:
    """What is in a folder, at any depth."""
    paths = sorted(path for path in folder.rglob("*") if not path.name.endswith("-shm"))
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in paths}


def plant(tree: Tree, folder: Path) -> None:
    """Puts a tree into a folder; what has lost its folder is left out."""
    for path, content in sorted(tree.items()):
        if not (folder / path).parent.is_dir():
            continue
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def record(folder: Path, work: Callable[[FileSystem], Any]) -> Log:
    """Does the work with files that record it."""
    before = tree_of(folder)
    steps: list[Step] = []

    def between(call: SystemCall, carry_out: Callable[[], Any]) -> Any:
        journal = _journal_in(folder)
        if journal.log and not (steps and steps[-1].journal.log):
            steps.append(Step("sync", str(Path(JOURNAL).parent), folder=True, journal=journal))  # SQLite did so
        folders = call.path.is_dir()
        existed = call.path.exists()
        done = carry_out()
        makes = call.name == "open" and bool(call.given[1] & os.O_CREAT) and not existed
        data = bytes(call.given[1])[:done] if call.name == "write" else b""
        target = _within(folder, Path(call.given[1])) if call.name == "replace" else ""
        steps.append(Step(call.name, _within(folder, call.path), target, data, makes, folders, journal))
        return done

    work(tapped(between))
    return Log(before, tuple(steps), _journal_in(folder))


def _within(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder))


def _journal_in(folder: Path) -> JournalFiles:
    database, log = folder / JOURNAL, folder / f"{JOURNAL}-wal"
    if not database.exists():
        return JournalFiles()
    return JournalFiles(database.read_bytes(), log.read_bytes() if log.exists() else b"")


# What a disk remembers.


@dataclass(slots=True, eq=False)
class _File:
    """What was written of a file, and how much of it was synced."""

    content: bytes = b""
    synced: bytes = b""


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of the names in a folder: `path` now leads to `file`, or to nothing; `gone` leads nowhere."""

    folder: str
    path: str
    file: _File | None
    gone: str = ""

    def apply(self, names: dict[str, _File | None]) -> None:
        names.pop(self.gone, None)
        if self.file is None:
            names.pop(self.path, None)
        else:
            names[self.path] = self.file


_FOLDER = _File()
"""Stands for every folder: only whether its name is there matters."""


@dataclass(slots=True)
class _Disk:
    """The names as the living see them, those that are durable, and the changes in between."""

    names: dict[str, _File | None] = field(default_factory=dict)
    durable: dict[str, _File | None] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)

    def change(self, path: str, file: _File | None, gone: str = "") -> None:
        change = _Change(str(Path(path).parent), path, file, gone)
        change.apply(self.names)
        self.changes.append(change)

    def do(self, step: Step) -> None:
        match step.name:
            case "open" if step.makes:
                self.change(step.path, _File())
            case "mkdir":
                self.change(step.path, _FOLDER)
            case "write":
                self._file(step.path).content += step.data
            case "sync" if step.folder:
                self._sync_names(step.path)
            case "sync":
                file = self._file(step.path)
                file.synced = file.content
            case "replace":
                self.change(step.target, self._file(step.path), gone=step.path)
            case "unlink":
                self.change(step.path, None)

    def _file(self, path: str) -> _File:
        file = self.names[path]
        assert file is not None
        return file

    def _sync_names(self, folder: str) -> None:
        for change in self.changes:
            if change.folder == folder:
                change.apply(self.durable)
        self.changes = [change for change in self.changes if change.folder != folder]


def _disk_at(log: Log, at: int) -> _Disk:
    disk = _Disk()
    for path, content in log.before.items():
        file = _FOLDER if content is None else _File(content, content)
        disk.names[path] = disk.durable[path] = file
    for step in log.steps[:at]:
        disk.do(step)
    return disk


# What is there after the power cut.


def alive(log: Log, at: int, journal: JournalFiles) -> Tree:
    """What there would be without a power cut."""
    disk = _disk_at(log, at)
    return _with_journal({path: _whole(file) for path, file in disk.names.items() if file}, journal)


def crashed(log: Log, at: int, journal: JournalFiles, dice: random.Random) -> Tree:
    """One of the things that may be there when the power goes after so many steps."""
    disk = _disk_at(log, at)
    names = dict(disk.durable)
    for change in _survivors(disk.changes, dice):
        change.apply(names)
    left = {path: file for path, file in names.items() if file}
    tree = {path: None if file is _FOLDER else _survived(file, dice) for path, file in left.items()}
    if JOURNAL in left and left[JOURNAL] is disk.names.get(JOURNAL):
        return _with_journal(tree, journal)
    return tree  # the journal of an earlier run, or none


def journal_between(log: Log, at: int, dice: random.Random) -> JournalFiles:
    """The journal at a commit between the step before and this one."""
    now, before = log.journal_at(at), log.journal_at(max(0, at - 1))
    if not now.log.startswith(before.log[:32]) or now.database != before.database:
        return now
    ends = [end for end in _commits(now.log) if end >= len(before.log)] or [len(now.log)]
    return JournalFiles(now.database, now.log[: dice.choice(ends)])


def _commits(log: bytes) -> list[int]:
    """Where each commit ends in a write-ahead log: https://www.sqlite.org/fileformat2.html#walformat."""
    if len(log) < 32:
        return []
    size = 24 + int.from_bytes(log[8:12])
    frames = range(32, len(log) - size + 1, size)
    return [start + size for start in frames if int.from_bytes(log[start + 4 : start + 8])]


def _with_journal(tree: Tree, journal: JournalFiles) -> Tree:
    rest = {path: content for path, content in tree.items() if not path.startswith(JOURNAL)}
    if journal.database is None:
        return rest
    return {**rest, JOURNAL: journal.database} | ({f"{JOURNAL}-wal": journal.log} if journal.log else {})


def _survivors(changes: Sequence[_Change], dice: random.Random) -> Sequence[_Change]:
    if dice.random() < 0.5:
        return changes[: dice.randint(0, len(changes))]
    return [change for change in changes if dice.random() < 0.5]


def _whole(file: _File) -> bytes | None:
    return None if file is _FOLDER else file.content


def _survived(file: _File, dice: random.Random) -> bytes:
    if file.content == file.synced:
        return file.content
    match dice.choice(["all", "nothing", "torn", "stale"]):
        case "all":
            return file.content
        case "nothing":
            return file.synced
        case "torn":
            return file.content[: dice.randint(len(file.synced), len(file.content) - 1)]
    mixed = bytearray(file.content)
    for start in range(len(file.synced) // SECTOR * SECTOR, len(mixed), SECTOR):
        if dice.random() < 0.5:
            end = min(start + SECTOR, len(mixed))
            mixed[start:end] = dice.choice([bytes(end - start), dice.randbytes(end - start)])
    return file.synced + bytes(mixed[len(file.synced) :])
