"""The calls of `pipeline.storage.durable.Files`, with something between: a count, a failure, the end of the process."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any, NoReturn

from pipeline.storage.durable import FileSystem

NAMES = ("open", "write", "sync", "replace", "unlink", "mkdir")


@dataclass(frozen=True, slots=True)
class SystemCall:
    """One call: the `number`-th of all, the `nth` of its name (both from 0), on this path; `given` is what it takes."""

    number: int
    nth: int
    name: str
    path: Path
    given: tuple[Any, ...]


Between = Callable[[SystemCall, Callable[[], Any]], Any]
"""What happens at a call: gets the call, and what carries it out."""


def tapped(between: Between) -> FileSystem:
    """Files whose calls go through `between`, one at a time."""
    lock = RLock()
    paths: dict[int, Path] = {}
    seen: Counter[str] = Counter()

    def tap(name: str) -> Callable[..., Any]:
        carry_out = getattr(FileSystem(), name)

        def call(*given: Any) -> Any:
            with lock:
                path = paths[given[0]] if isinstance(given[0], int) else Path(given[0])
                described = SystemCall(seen.total(), seen[name], name, path, given)
                seen[name] += 1
                done = between(described, lambda: carry_out(*given))
                if name == "open":
                    paths[done] = path
                return done

        return call

    return FileSystem(**{name: tap(name) for name in NAMES})


@dataclass(frozen=True, slots=True)
class Kill:
    """`kill -9` before the `at`-th call (or the `at`-th of a `name`); with `tear`, after that share of its bytes."""

    at: int
    name: str | None = None
    tear: float | None = None

    def __call__(self, call: SystemCall, carry_out: Callable[[], Any]) -> Any:
        if self.at == (call.number if self.name is None else call.nth) and self.name in {None, call.name}:
            if self.tear is not None and call.name == "write":
                descriptor, data = call.given
                os.write(descriptor, bytes(data)[: max(1, int(len(data) * self.tear))])
            die()
        return carry_out()


def in_place(files: FileSystem) -> FileSystem:
    """The same files, written carelessly: in their place, where everybody sees them before they are whole."""

    def open_in_place(path: Path, flags: int, mode: int) -> int:
        return files.open(path.with_name(path.name[1:-4]) if path.suffix == ".tmp" else path, flags, mode)

    return replace(files, open=open_in_place, replace=lambda _source, _target: None)


def die() -> NoReturn:
    """Ends the process as `kill -9` from outside does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


@dataclass(slots=True)
class FailingCalls:
    """An error at the `at`-th call, and a list of all that were made."""

    at: int
    errno: int
    made: list[SystemCall] = field(default_factory=list)

    def __call__(self, call: SystemCall, carry_out: Callable[[], Any]) -> Any:
        self.made.append(call)
        if call.number == self.at:
            raise OSError(self.errno, os.strerror(self.errno), str(call.path))
        return carry_out()
