"""Messages between the parent and its worker processes: frozen values, pickled, over a socket pair."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream
from anyio.streams.buffered import BufferedByteReceiveStream

from pipeline.data import Part
from pipeline.execution.settings import Settings
from pipeline.faults import Broken, Fault, UsageError
from pipeline.storage.run_folder import RunIdentity

_LENGTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The first message to a worker: the run, and which of its workers this is. `start` is what its command needs."""

    plan: RunIdentity
    settings: Settings
    number: int
    of: int
    start: Any
    log_level: int
    """The least level of records that the parent logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLease:
    """What a worker may do on one lane: `rate` is in requests per second, `probes` counts all ever granted.

    `comparisons` counts how often it was ever asked to send an answered request again (see `policy.upstream.Control`).
    Refusals that ended by `cleared_until` are their rows' own; `served` says whether any row was ever answered.
    """

    rate: float | None = None
    opened_at: float | None = None
    failing_since: float | None = None
    cleared_until: float = float("-inf")
    served: bool = False
    probes: int = 0
    comparisons: int = 0
    hold_ends: float = float("-inf")


@dataclass(frozen=True, slots=True)
class BudgetLease:
    """All `calls` that a budget ever granted a worker, and the sum of the amounts that were reserved for them."""

    calls: int = 0
    amount: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's share of the run's limits, until the next lease.

    `lanes` are in the order of the endpoints, `budgets` by unit. `maxima` is what all workers have learned about the
    cost of calls (see `policy.estimates`).
    """

    number: int
    concurrency: int
    rpm: float | None = None
    tpm: float | None = None
    lanes: Sequence[LaneLease] = ()
    budgets: Mapping[str, BudgetLease] = field(default_factory=dict)
    maxima: Mapping[Any, float] = field(default_factory=dict)


@dataclass(slots=True)
class LaneReport:
    """What happened on one lane since the last report; `events` are in order.

    `compares` says whether the worker has an answered request that it could send again, `lost_at` when it sent one that
    was then refused; `compared` is how many of the comparisons asked for have ended.
    """

    sent: list[float] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    held_back_at: float = float("-inf")
    compares: bool = False
    lost_at: float = float("-inf")
    compared: int = 0


@dataclass(slots=True)
class BudgetReport:
    """The costs of calls since the last report, each with what would now be reserved for it.

    Also: by how much the reservations of its calls have `changed` in all; how many calls ended, and the amount `freed`
    by them; how many are `wanted` beyond those `granted`, and the amount for `each`; and how many are `returned`
    unused, and the amount given back.
    """

    costs: list[tuple[float, float | None]] = field(default_factory=list)
    changed: float = 0.0
    ended: int = 0
    freed: float = 0.0
    granted: int = 0
    wanted: int = 0
    each: float = 0.0
    returned: int = 0
    given_back: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """A worker's state under the lease with this number, and what it has counted since its last report."""

    lease: int
    in_flight: int
    waiting: int
    retrying: int
    waits_for: str | None = None
    trouble: str | None = None
    counted: Mapping[str, Any] = field(default_factory=dict)
    notices: Sequence[str] = ()
    latencies: Sequence[float] = ()
    lanes: Sequence[LaneReport] = ()
    budgets: Mapping[str, BudgetReport] = field(default_factory=dict)
    maxima: Mapping[Any, float] = field(default_factory=dict)
    """What it has learned about the cost of calls, if there are budgets."""
    last_throttle: str | None = None
    last_failure: str | None = None
    records: Sequence[Mapping[str, Any]] = ()
    """What it has logged."""


@dataclass(frozen=True, slots=True)
class ChunkWanted:
    """The worker has room for another chunk."""


@dataclass(frozen=True, slots=True)
class ChunkAssigned:
    """A chunk to work on; None when there will be no more."""

    chunk: int | None


@dataclass(frozen=True, slots=True)
class PartWritten:
    """A part is durable on disk; its journal entries wait to be deleted."""

    part: Part


@dataclass(frozen=True, slots=True)
class PartRecorded:
    """The part of this chunk is durably recorded; or it could not be (`broken`)."""

    chunk: int
    broken: Broken | None = None


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The run is stopping for this reason: drain."""

    reason: Any


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The worker fails: for a known reason, or because of a bug, with its traceback."""

    reason: Fault | UsageError | str


@dataclass(frozen=True, slots=True)
class WorkerDone:
    """The last message of a worker: everything assigned to it is sealed or recorded."""


class _SocketReader(ByteReceiveStream):
    """What arrives at a socket.

    Not anyio's stream over a socket: when its receiver is cancelled at the moment that something arrives, it sets the
    result of a future that has one, which asyncio prints with a traceback. `wait_readable` allows for that.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            try:
                arrived = self._end.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._end)
            except OSError as fault:
                raise anyio.BrokenResourceError from fault
            else:
                if not arrived:
                    raise anyio.EndOfStream
                return arrived

    async def aclose(self) -> None:
        anyio.notify_closing(self._end)
        self._end.close()


class Channel:
    """One end of the socket pair. No other process has the other end, so what arrives is safe to unpickle."""

    def __init__(self, end: socket.socket) -> None:
        """A channel over one end of a pair; takes ownership of the socket."""
        end.settimeout(0)
        self._end = end
        self._stream = _SocketReader(end)
        self._received = BufferedByteReceiveStream(self._stream)
        self._sending = anyio.Lock(fast_acquire=True)

    async def share(self, descriptor: int) -> None:
        """Sends the other end its own descriptor of an open file; before any message."""
        async with self._sending:
            try:
                socket.send_fds(self._end, [b"\0"], [descriptor])  # the first byte of all: it finds room
            except OSError as fault:
                raise anyio.BrokenResourceError from fault

    async def take(self) -> int | None:
        """The descriptor sent by the other end; None if the other end is gone."""
        await anyio.wait_readable(self._end)
        try:
            _, descriptors, _, _ = socket.recv_fds(self._end, 1, 1)
        except OSError:
            return None
        for descriptor in descriptors:
            # Processes that a job starts may outlive this one, and must not hold the lock.
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes positions only
        return descriptors[0] if descriptors else None

    async def send(self, message: object) -> None:
        """Sends a message; raises `anyio.BrokenResourceError` when the other end is gone."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        async with self._sending:
            left = memoryview(len(content).to_bytes(_LENGTH, "big") + content)
            while left:
                try:
                    left = left[self._end.send(left) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._end)
                except OSError as fault:
                    raise anyio.BrokenResourceError from fault

    async def receive(self) -> Any:
        """The next message; None if the other end is gone, even in the middle of one."""
        try:
            length = int.from_bytes(await self._received.receive_exactly(_LENGTH), "big")
            return pickle.loads(await self._received.receive_exactly(length))  # noqa: S301 - see the class
        except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return None

    async def close(self) -> None:
        """Closes this end."""
        await self._stream.aclose()
