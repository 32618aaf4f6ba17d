"""How worker processes begin: forked at the very start of a command, or later as a command of their own.

What a worker needs takes a second of processor time to load. Forked, all of a crew have it for the price of one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
                try:
                    self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                except ChildProcessError:  # where SIGCHLD is ignored nobody learns how it ended, only that it did
                    self.returncode = 0
        return self.returncode

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Started:
    """A worker process, and our ends of what ties it to us: it ends when the lifeline is closed."""

    process: Process
    link: socket.socket
    lifeline: int

    def let_go(self) -> None:
        """Closes our ends."""
        self.link.close()
        os.close(self.lifeline)


@dataclass(slots=True)
class WorkerPool:
    """Where the worker processes of a crew come from: `count` are forked beforehand, others `command` starts.

    Two descriptors are added to the command, as `Main` takes them. Workers are deaf to Ctrl-C, SIGTERM and SIGHUP:
    their parent says when to end, and how. Their standard output is our standard error: ours carries the result, and
    nothing else.
    """

    command: Sequence[str]
    count: int
    _forked: deque[Started] = field(default_factory=deque)

    def fork(self, main: Main) -> None:
        """Forks the crew, which then waits for its parent; what cannot be forked is started later.

        Call it while there are no threads but those of libraries that know of forks (Arrow's, OpenBLAS's), and before
        an event loop or a database is opened. Does nothing but on Linux: elsewhere the system's own libraries do not
        outlive a fork.
        """
        if sys.platform != "linux":
            return
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError), _signals_blocked():  # no descriptors, no memory: it is not needed
            for _ in range(self.count):
                self._forked.append(self._fork(main))

    def start(self) -> Started:
        """A worker, forked before or started now."""
        if self._forked:
            return self._forked.popleft()
        ours, theirs, reading, lifeline = _ties()
        started = [*self.command, str(theirs.fileno()), str(reading)]
        try:
            with _signals_blocked():
                process = subprocess.Popen(  # noqa: S603 - the command is ours
                    started, stdin=subprocess.DEVNULL, stdout=2, pass_fds=(theirs.fileno(), reading)
                )
        finally:
            theirs.close()
            os.close(reading)
        return Started(process, ours, lifeline)

    def reduce(self, count: int) -> None:
        """So many are enough: others that were forked are ended."""
        self.count = count
        left = [self._forked.pop() for _ in range(len(self._forked) - count)]
        for one in left:
            one.let_go()
        for one in left:
            one.process.wait()

    def _fork(self, main: Main) -> Started:
        ours, theirs, reading, lifeline = _ties()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: see `fork`
                pid = os.fork()
            if pid == 0:
                # A lifeline that another worker holds, too, would not end with us.
                others = [end for one in self._forked for end in (one.link.fileno(), one.lifeline)]
                _live(main, theirs, reading, [ours.fileno(), lifeline, *others])
        except OSError:
            Started(Forked(0), ours, lifeline).let_go()
            raise
        finally:
            theirs.close()
            os.close(reading)
        return Started(Forked(pid), ours, lifeline)


def _ties() -> tuple[socket.socket, socket.socket, int, int]:
    """Our end of a link and a worker's, its end of a lifeline and ours."""
    ours, theirs = socket.socketpair()
    try:
        return ours, theirs, *os.pipe()
    except OSError:
        ours.close()
        theirs.close()
        raise


def _live(main: Main, link: socket.socket, lifeline: int, foreign: Sequence[int]) -> None:
    """The whole life of a forked worker. Never returns: what follows is its parent's."""
    code = 1
    try:
        for descriptor in foreign:
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        code = main(link.detach(), lifeline)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, it must not reach the parent's part of the program
        with suppress(Exception):  # standard error may be closed
            traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
        finally:
            os._exit(code)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
