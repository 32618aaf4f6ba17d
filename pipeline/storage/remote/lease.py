"""Who works on an output: an object instead of a lock, renewed while the run lives, and taken over when it does not.

All times are the store's own: two machines may disagree about the time by minutes. The lease is never deleted, since a
deletion has no condition: it is marked as released.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from pipeline.endpoint.log_events import log
from pipeline.faults import Broken, Halt, OutputInUse, UsageError
from pipeline.storage.remote.objects import LEASE, OutputObjects
from pipeline.storage.run_folder import RUN
from pipeline.store.object_store import AlreadyThere, Changed

_LOG = logging.getLogger(__name__)

RENEW_S = 20.0
"""Interval of the renewals, in seconds. Cloud Storage allows one write a second to the same name."""

TAKEOVER_S = 60.0
"""How long past the time of its next renewal a lease may be taken over, in seconds."""

_TRIES = 5  # each lost to another starter, of which one has won


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lease, as it is written in the object."""

    owner: str
    """The id of a state folder. Whoever has its local lock and this id is the same owner."""
    host: str
    pid: int
    machine: str = ""
    """The running kernel and the namespace of `pid`; empty where that cannot be known."""
    process_start: str = ""
    """Tells the process from a later one with the same `pid`."""
    started: float = field(default_factory=time.time)
    """When it took the lease, in Unix time by its own clock."""
    renewals: int = 0
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Different at each start: no two writes have the same bytes, so that our own are recognised."""
    released: bool = False

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    def has_ended(self) -> bool:
        """Whether the process has certainly ended; False if it cannot be known here, as for one of another machine."""
        return bool(self.machine) and self.machine == _machine() and _process_start(self.pid) != self.process_start


def this_process(owner: str) -> Holder:
    """Describes this process, as the holder of a lease."""
    pid = os.getpid()
    return Holder(
        owner=owner, host=socket.gethostname(), pid=pid, machine=_machine(), process_start=_process_start(pid)
    )


class RunLease:
    """A lease that this process holds until `release`. Methods may be called from any thread."""

    def __init__(
        self, objects: OutputObjects, name: str, holder: Holder, version: str, clock: Callable[[], float]
    ) -> None:
        self._objects = objects
        self._name = name
        self._holder = holder
        self._version = version
        self._clock = clock
        self._renewed = clock()
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._lost: Halt | None = None

    @property
    def owner(self) -> str:
        """The id of the state folder that holds it."""
        return self._holder.owner

    @property
    def lost(self) -> Halt | None:
        """Who has taken it over; None as long as that is not known."""
        return self._lost

    def keep(self) -> None:
        """Renews the lease from a thread of its own, until `release` or until it was taken over."""
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def require(self) -> None:
        """Returns if the lease is surely held now. Raises `Broken` if it was taken over.

        Called before everything that has no condition of its own: this process may have slept for an hour.
        """
        if self._lost is not None:
            raise self._lost
        if self._clock() - self._renewed > RENEW_S:
            self.renew()

    def renew(self) -> None:
        """Renews the lease. Raises `Broken` if it was taken over, or the store fails."""
        with self._writing:
            if self._lost is not None:
                raise self._lost
            began = self._clock()
            self._write(replace(self._holder, renewals=self._holder.renewals + 1))
            self._renewed = began

    def release(self) -> None:
        """Marks the lease as released, unless it was lost. A store that fails leaves it to run out."""
        self._ended.set()
        with self._writing, suppress(Halt, UsageError):
            if self._lost is None and not self._holder.released:
                self._write(replace(self._holder, renewals=self._holder.renewals + 1, released=True))

    def _write(self, holder: Holder) -> None:
        try:
            self._version = self._objects.replace(self._name, packed_holder(holder), self._version)
        except (Changed, AlreadyThere):
            found = self._objects.read(self._name)
            who = holder_in(found.data) if found else None
            by = f"by {who}" if who else "by nobody: its lease was deleted"
            message = f"another run has taken over {self._objects.address} ({by}); this one has stopped"
            self._lost = Broken(f"{message}. What it had not uploaded stays in its state folder")
            log(_LOG, "lease.lost", output=self._objects.address, reason=self._lost)
            raise self._lost from None
        self._holder = holder

    def _keep(self) -> None:
        while self._lost is None and not self._ended.wait(RENEW_S):
            with suppress(
                Halt, UsageError
            ):  # a store that does not answer: the next try tells whether the lease is still ours
                self.renew()


def acquire(
    objects: OutputObjects,
    known: str | None,
    now: datetime,
    clock: Callable[[], float] | None = None,
    *,
    name: str = LEASE,
    what: str = "",
) -> tuple[RunLease, str | None]:
    """Takes the lease of an output, and returns it with the owner before; None if there was none.

    `name` is that of its object, if it is of `what`, a part of the output.

    `known` is the owner whose local lock this process holds; `now` is the store's time. The new lease has that owner
    if it was the last one, and else a new one. Raises `OutputInUse`, naming the holder.
    """
    clock = clock or _since_boot
    for _ in range(_TRIES):
        found = objects.read(name)
        holder = holder_in(found.data) if found else None
        if found and holder and not (holder.released or holder.owner == known or holder.has_ended()):
            left = RENEW_S + TAKEOVER_S - (now - found.info.modified).total_seconds()
            if left > 0:
                who = f"another run works on {what or objects.address}: {holder}"
                raise OutputInUse(f"{who}. If that machine is gone, the output is free in {left:.0f} s")
        here = this_process(known if known and (holder is None or holder.owner == known) else uuid.uuid4().hex)
        with suppress(Changed, AlreadyThere):
            version = objects.replace(name, packed_holder(here), str(found.info.version) if found else None)
            before = holder.owner if holder else None
            log(_LOG, "lease.taken", output=what or objects.address, owner=here.owner, before=before)
            return RunLease(objects, name, here, version, clock), before
    raise OutputInUse(f"other runs start on {what or objects.address} at the same time: try again")


def holder_of(objects: OutputObjects) -> Holder | None:
    """Who holds the lease, or held it until it was killed; None if it was released."""
    found = objects.read(LEASE)
    holder = holder_in(found.data) if found else None
    return None if holder is None or holder.released or holder.has_ended() else holder


def packed_holder(holder: Holder) -> bytes:
    """A holder as the object of its lease has it."""
    return orjson.dumps(asdict(holder), option=orjson.OPT_INDENT_2)


def holder_in(content: bytes) -> Holder | None:
    """The holder, or None if the object is not a lease of ours: it then is taken as one that was released."""
    names = {one.name for one in fields(Holder)}
    try:
        known: dict[str, Any] = orjson.loads(content)
        return Holder(**{name: value for name, value in known.items() if name in names})
    except (ValueError, TypeError, AttributeError):
        return None


def _machine() -> str:
    """The boot of this machine, and the namespace of process ids; empty if it cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When a process began, in ticks since boot; empty if there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields_ = status.rpartition(")")[2].split()
    return "" if fields_[0] == "Z" else fields_[19]


def _since_boot() -> float:
    """Seconds that go on while the machine sleeps, unlike those of the monotonic clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


OWNER_FILE = f"{RUN}/owner"
"""The file of a state folder with its owner id, written once the folder holds what the bucket does."""
