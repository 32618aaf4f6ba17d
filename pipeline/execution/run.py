"""An opened run: which of its chunks are sealed, and the execution of the others in this process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from pipeline.data import Entry, Failure, Part, is_part_name
from pipeline.endpoint.connection import Connect
from pipeline.execution import engine
from pipeline.execution.monitor import RunMonitor
from pipeline.job.job import Job
from pipeline.source import ChunkSpans
from pipeline.storage.run_folder import SUCCESS
from pipeline.totals.failures import ALIKE, Failures, Tolerance
from pipeline.totals.ledger import Charges

if TYPE_CHECKING:
    from pipeline.execution.context import RunContext
    from pipeline.policy import LocalBudget, LocalUpstream
    from pipeline.policy.compose import ComposedAsk
    from pipeline.source import Generation
    from pipeline.storage.integrity import PartCheck
    from pipeline.storage.remote.follower import Follower
    from pipeline.storage.remote.records import RemotePartCheck
    from pipeline.storage.run_folder import RunIdentity

LEASE_CHECK_S = 1.0
"""How often a run looks whether its lease was taken over."""

FEW_LEFT = 64
"""The last rows, if this few and all in play, are asked however many failed: a small trial shows all it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job in its output folder, locked and checked, with nothing asked yet. Create it with `open_run`.

    Only its journal and what describes it, `parts` and the counters, change while it is executed.
    """

    context: RunContext[LocalBudget]
    parts: dict[int, Part]
    """The sealed parts, by chunk."""
    part_check: PartCheck | RemotePartCheck
    lock: int
    """The descriptor of the lock, which worker processes share."""
    started: str
    """When this start began, in UTC."""
    began: float
    """The same by the monotonic clock, in seconds."""
    charged_before: Charges
    """What earlier starts were charged."""
    reopened: int = 0
    """The failed rows of earlier starts that are asked again."""
    added: int = 0
    """The rows by which this start has extended the run."""
    allowed: float = math.inf
    """How many rows may fail in all before the start stops."""
    replaced: RunIdentity | None = None
    """The run that was in the folder before, if this one replaces it."""
    follower: Follower | None = None
    """The bucket that follows the run folder, if the output is in one."""
    portion: range | None = None
    """The indices of the chunks that this start works on, if others work on the rest; None for all of them."""

    @property
    def output(self) -> str:
        """The output, as its user named it: a folder, or an address."""
        return self.follower.objects.address if self.follower else str(self.context.folder.output)

    def chunks(self) -> list[engine.Chunk]:
        """The chunks that are not sealed, in order."""
        return [self.context.chunks.chunk(index) for index in self.assigned if index not in self.parts]

    @property
    def assigned(self) -> range:
        """The indices of the chunks that this start works on."""
        return range(len(self.context.survey.chunks)) if self.portion is None else self.portion

    @property
    def rows(self) -> int:
        """The rows of these chunks."""
        return len(ChunkSpans(self.context.survey.generations).rows_of(self.assigned))

    async def execute(self, connect: Connect) -> None:
        """Asks the rows that are left, and seals them. Returns at the end, or once the stop was requested and drained.

        The endpoints are opened only if rows are left.
        """
        if not (chunks := self.begin()):
            return
        context = self.context
        async with anyio.create_task_group() as tasks, connect() as endpoints:
            composed = context.compose(endpoints)
            # Inside the block of the endpoints, whose last rates it saves when it is cancelled.
            tasks.start_soon(self.monitor(composed).keep)
            tasks.start_soon(self.stop_if_taken_over)
            self.upload_first()
            await context.process(
                composed.ask, engine.in_order(chunks), self.record_part, failed=self.stop_if_too_many_failed
            )
            tasks.cancel_scope.cancel()  # the monitor has no end of its own

    def begin(self) -> list[engine.Chunk]:
        """The chunks to work on. If there are any, the dataset is no longer marked as complete."""
        if chunks := self.chunks():
            self.unfinish()
            # Earlier starts may have failed more rows than are tolerated: no call is made then.
            self.stop_if_too_many_failed()
        return chunks

    def unfinish(self) -> None:
        """Removes the success marker while the dataset is being changed."""
        if self.follower is not None:
            self.follower.unfinish()
        self.context.dataset.unfinish()

    async def stop_if_taken_over(self) -> None:
        """Requests the stop when another run has taken over the output."""
        if self.follower is None:
            return
        fault = None
        while fault is None:  # polled: it is noticed by a thread, which may not touch the event loop
            await anyio.sleep(LEASE_CHECK_S)
            fault = self.follower.lease.lost
        self.context.stop.request(fault)

    def upload_first(self) -> None:
        """Has the journal uploaded as soon as the stop is requested, before calls are waited for.

        A platform may end the machine within seconds, and its disk with it.
        """
        if self.follower is not None:
            self.context.stop.then(self.follower.hurry)

    @property
    def is_marked(self) -> bool:
        """Whether the dataset is marked as complete: since the last start that ended, nothing of it was changed."""
        if self.follower is not None:
            return self.follower.is_marked()
        return (self.context.folder.output / SUCCESS).is_file()

    def monitor(self, composed: ComposedAsk[LocalUpstream]) -> RunMonitor:
        """The monitor of the run, while it is executed by these limits."""
        context = self.context
        return RunMonitor(
            context.folder.run,
            composed,
            context.counters,
            context.stop,
            context.folder.files,
            context.rates,
            budgets=context.budgets,
        )

    async def record_part(self, part: Part) -> None:
        """Records a written part, as `seal` does, without blocking the event loop."""
        await to_thread.run_sync(self.seal, part)

    def seal(self, part: Part, *, over: Part | None = None) -> None:
        """Records a written part, durably, and before that in the bucket if there is one. Raises `Broken`.

        If another machine has sealed the chunk, its part is recorded, unless the part replaces one: `over`.
        """
        if self.follower is not None:
            part = self.follower.publish(part) if over is None else self.follower.replace_part(part, over)
        # The journal first: `parts` must never list what a crash could still undo.
        self.context.journal.seal(part)
        self.parts[part.chunk] = part

    def stop_if_too_many_failed(self) -> None:
        """Requests the stop if more rows have failed than tolerated, and stopping would save calls."""
        counters, stop = self.context.counters, self.context.stop
        # Rows in play are answered in any case; with no others left, to stop would save nothing.
        in_play = counters.in_flight + counters.waiting + counters.retrying
        if (counters.failed or counters.failures_before.kinds) and counters.rows - counters.done > min(
            in_play, FEW_LEFT
        ):
            failures = counters.failures_before + counters.failures
            if (fault := self.tolerance.passed(counters.ok_before + counters.ok, failures, counters.rows)) is not None:
                stop.request(fault)

    @property
    def tolerance(self) -> Tolerance:
        """How many failed rows the run tolerates."""
        match self.context.settings.fail_fast:
            case "job":
                return Tolerance(self.allowed, ALIKE)
            case "alike":
                return Tolerance(alike=ALIKE)
        return Tolerance()

    def failures_allowed(self) -> float:
        """How many rows may fail in all: of finished generations as many as did, and of others as many as allowed."""
        found = self._failed_in_generations()
        job = self.context.job
        return sum(allowed_failures(job, one.rows) if failed is None else failed for one, failed in found)

    def too_many_failed(self) -> str | None:
        """Which generation has more failed rows than the job allows, in a sentence; None if none has.

        Each counts by itself, as a run of its own would: all new rows could fail among many old ones.
        """
        job = self.context.job
        for one, failed in self._failed_in_generations():
            if failed is not None and failed > allowed_failures(job, one.rows):
                which = f"rows appended {one.added}" if one.added else "rows"
                return (
                    f"{failed} of {one.rows} {which} failed, more than the job allows (max_failed={job.max_failed:g})"
                )
        return None

    def _failed_in_generations(self) -> Iterator[tuple[Generation, int | None]]:
        """Each generation with the number of its failed rows; None while not all of it is sealed."""
        first = 0
        for one in self.context.survey.generations:
            parts = [self.parts.get(chunk) for chunk in range(first, first + one.chunks)]
            failed = None if None in parts else sum(part.failed for part in parts if part is not None)
            yield one, failed
            first += one.chunks

    @property
    def charged(self) -> Charges:
        """What this start has been charged so far."""
        return self.context.journal.charged() - self.charged_before

    def counts(self) -> tuple[int, Failures]:
        """The number of rows with a value, and the failed rows by kind, sealed or not."""
        ok = sum(part.ok for part in self.parts.values())
        failures = sum((Failures.from_json(part.failures) for part in self.parts.values()), Failures())
        for chunk in self.chunks():
            for ordinal, entry in self.context.journal.entries(chunk.first, chunk.rows):
                outcome = self.context.job.outcome(ordinal, entry)
                if isinstance(outcome, Failure):
                    failures += Failures.of([outcome])
                else:
                    ok += 1
        return ok, failures

    def has_failed(self, ordinal: int, entry: Entry) -> bool:
        """Whether this entry of a row is a failure."""
        return isinstance(self.context.job.outcome(ordinal, entry), Failure)

    def damage(self) -> dict[int, str]:
        """What is wrong with the files of sealed parts: one sentence per damaged chunk."""
        return self.part_check.damage(self.parts.values())

    def strangers(self) -> list[str]:
        """Files that readers of the complete dataset would take for parts, but are not: one sentence each."""
        whole = len(self.parts) == len(self.context.survey.chunks)
        # A start that was killed may have left a part that it had not recorded yet; it will be overwritten.
        found = self.part_check.unrecorded(self.parts.values())
        return [f"{path} is not a part of this run" for path in found if whole or not is_part_name(path.name)]

    def remedy(self) -> str:
        """How to repair damage."""
        plan = self.context.plan
        again = f", or `pipeline reparse {self.output} --job {plan.target or 'JOB.py'}` makes it again at no cost"
        return f"restore the file{again if plan.keep_replies else ''}; --fresh starts over"


def allowed_failures(job: Job, rows: int) -> float:
    """How many rows may fail: `max_failed` is a share if below 1, otherwise a number of rows."""
    return job.max_failed * rows if job.max_failed < 1 else job.max_failed


def now() -> str:
    """The time in UTC, as summaries have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
