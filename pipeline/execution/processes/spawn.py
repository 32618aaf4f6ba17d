"""Starts worker processes: forked at the very start of a command, or later as a command of their own.

Loading what a worker needs takes a second of CPU time. When forked, all workers of a pool share that cost.
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
"""Runs a worker, given the descriptors of its ends of the channel and the lifeline; returns the exit code."""


class Process(Protocol):
    """What is needed of a started process; `subprocess.Popen` has it."""

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
                except ChildProcessError:  # with SIGCHLD ignored, the exit status is lost: only the end is known
                    self.returncode = 0
        return self.returncode

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Started:
    """A worker process, and the parent's ends of its channel and lifeline: it ends when the lifeline is closed."""

    process: Process
    channel: socket.socket
    lifeline: int

    def let_go(self) -> None:
        """Closes the parent's ends."""
        self.channel.close()
        os.close(self.lifeline)


@dataclass(slots=True)
class WorkerPool:
    """The source of worker processes: `count` are forked in advance, any others are started by `command`.

    Two descriptors are appended to the command, as `Main` takes them. Workers block Ctrl-C, SIGTERM and SIGHUP: the
    parent decides when they end, and how. Their standard output goes to the parent's standard error, because the
    parent's standard output carries the result and nothing else.
    """

    command: Sequence[str]
    count: int
    _forked: deque[Started] = field(default_factory=deque)

    def fork(self, main: Main) -> None:
        """Forks the workers, which then wait for the parent; those that cannot be forked are started later.

        Call it while the only threads are those of libraries that handle forks (Arrow's, OpenBLAS's), and before an
        event loop or a database is opened. Does nothing except on Linux: elsewhere the system libraries do not survive
        a fork.
        """
        if sys.platform != "linux":
            return
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError), _signals_blocked():  # out of descriptors or memory: forking is only an optimisation
            for _ in range(self.count):
                self._forked.append(self._fork(main))

    def start(self) -> Started:
        """A worker: one forked in advance, or started now."""
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
        """Only `count` workers are needed: ends the other forked ones."""
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
                # If another worker also held a lifeline, it would stay open when the parent dies.
                others = [end for one in self._forked for end in (one.channel.fileno(), one.lifeline)]
                _live(main, theirs, reading, [ours.fileno(), lifeline, *others])
        except OSError:
            Started(Forked(0), ours, lifeline).let_go()
            raise
        finally:
            theirs.close()
            os.close(reading)
        return Started(Forked(pid), ours, lifeline)


def _ties() -> tuple[socket.socket, socket.socket, int, int]:
    """The parent's and the worker's end of a channel, and the worker's and the parent's end of a lifeline."""
    ours, theirs = socket.socketpair()
    try:
        return ours, theirs, *os.pipe()
    except OSError:
        ours.close()
        theirs.close()
        raise


def _live(main: Main, channel: socket.socket, lifeline: int, foreign: Sequence[int]) -> None:
    """The entire life of a forked worker. Never returns: the code after the fork belongs to the parent."""
    code = 1
    try:
        for descriptor in foreign:
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        code = main(channel.detach(), lifeline)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, it must not reach the parent's code
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
