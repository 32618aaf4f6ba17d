"""How worker processes begin: forked while this process is still one thread, or later as a command of their own.

What a worker needs takes a second of processor time to load. Forked, all of a crew have it for the price of one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

Main = Callable[[int, int], int]
"""What a worker does with the descriptors of its end of the link and of its lifeline; its exit code."""


class Process(Protocol):
    """What is needed of a process that was started; `subprocess.Popen` has it."""

    pid: int
    returncode: int | None

    def wait(self) -> int:
        """Returns at its end, in any thread."""

    def kill(self) -> None:
        """Ends it, if it has not ended."""


@dataclass(slots=True)
class Forked:
    """A process that was forked."""

    pid: int
    returncode: int | None = None
    _waiting: Lock = field(default_factory=Lock)

    def wait(self) -> int:
        """Returns at its end, in any thread."""
        with self._waiting:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Started:
    """A worker process, and our ends of what ties it to us: it ends when the lifeline is closed."""

    process: Process
    link: socket.socket
    lifeline: int


@dataclass(slots=True)
class Workers:
    """Where the `count` worker processes of a crew come from: those forked beforehand, then those `command` starts.

    Two descriptors are added to the command, as `Main` takes them. Workers are deaf to Ctrl-C and SIGTERM: their
    parent says when to end, and how. Their standard output is our standard error: ours carries the result, and
    nothing else.
    """

    command: Sequence[str]
    count: int
    _forked: deque[Started] = field(default_factory=deque)

    def fork(self, main: Main) -> None:
        """Forks the crew, which then waits for its parent. Call it before any thread, event loop or file is opened.

        Does nothing but on Linux: elsewhere the system's own libraries do not outlive a fork.
        """
        if sys.platform != "linux":
            return
        sys.stdout.flush()
        sys.stderr.flush()
        for _ in range(self.count):
            ours, theirs = socket.socketpair()
            reading, lifeline = os.pipe()
            with _signals_blocked():
                pid = os.fork()
                if pid == 0:
                    # A lifeline that another worker holds, too, would not end with us.
                    _run(main, theirs, reading, [ours.detach(), lifeline, *self._descriptors()])
            theirs.close()
            os.close(reading)
            self._forked.append(Started(Forked(pid), ours, lifeline))

    def start(self) -> Started:
        """A worker, forked before or started now."""
        if self._forked:
            return self._forked.popleft()
        ours, theirs = socket.socketpair()
        reading, lifeline = os.pipe()
        ends = (theirs.fileno(), reading)
        try:
            with _signals_blocked():
                process = subprocess.Popen(  # noqa: S603 - the command is ours
                    [*self.command, *map(str, ends)], stdin=subprocess.DEVNULL, stdout=2, pass_fds=ends
                )
        finally:
            theirs.close()
            os.close(reading)
        return Started(process, ours, lifeline)

    def dismiss(self) -> None:
        """Ends those that were forked and are not needed."""
        while self._forked:
            left = self._forked.popleft()
            os.close(left.lifeline)
            left.link.close()
            left.process.wait()

    def _descriptors(self) -> Iterator[int]:
        for other in self._forked:
            yield other.link.fileno()
            yield other.lifeline


def _run(main: Main, link: socket.socket, lifeline: int, foreign: Sequence[int]) -> None:
    """The whole life of a forked worker. Never returns: what follows is its parent's."""
    code = 1
    try:
        for descriptor in foreign:
            os.close(descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        code = main(link.detach(), lifeline)
    except BaseException:  # noqa: BLE001 - whatever it is, it must not reach the parent's part of the program
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
