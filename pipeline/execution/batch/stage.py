"""The part of a run that batch jobs do: rows are submitted, the jobs waited for, their answers recorded and sealed.

Every step is recorded before the next begins, so that a start that is killed costs nothing: the rows of a job before it
is created, its answers together with what they cost. Rows that a job leaves are asked online, by `Run.execute`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import anyio
from anyio import to_thread

from pipeline.data import Outcome, Reply, Request
from pipeline.endpoint.batch.backend import BatchBackend, BatchJob
from pipeline.execution import engine
from pipeline.execution.batch.collection import AnswerKeys, Collected, Collection
from pipeline.execution.batch.reservation import settle
from pipeline.execution.batch.reuse import CacheReader
from pipeline.execution.batch.settings import CANCEL_S, FIRST_POLL_S, LAST_POLL_S, MOST_WAVES, BatchSettings
from pipeline.execution.batch.submitter import Submitter, named
from pipeline.execution.run import Run
from pipeline.faults import Broken, Halt, Interrupted, NotReady, ProviderUnusable
from pipeline.policy.compose import prices_for
from pipeline.storage.submissions import Submission
from pipeline.text import figures

_POLL_GROWTH = 1.5


@dataclass(slots=True)
class BatchStage:
    """Carries out a run by batch jobs. `now` gives Unix time in seconds; tests have a clock of their own."""

    run: Run
    backend: BatchBackend
    settings: BatchSettings
    now: Callable[[], float] = time.time
    _cancelled: dict[str, float] = field(default_factory=dict)
    """When this start cancelled a job, by its name, on the clock of the event loop."""
    _away_since: float | None = None
    """Since when the server cannot be used."""

    async def carry_out(self) -> bool:
        """Submits, waits and collects; returns whether what is left, if anything, is to be asked online now.

        A `Halt` requests the stop of the run. Jobs that have not ended then go on, and the next start collects them.
        """
        stop = self.run.context.stop
        if not self.run.begin():
            return False
        done = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.run.stop_if_taken_over)
            try:
                with suppress(Interrupted):  # the stop has a reason of its own
                    done = await self._work()
            except Halt as fault:
                stop.request(fault)
            tasks.cancel_scope.cancel()
        return done and not stop.requested

    async def _work(self) -> bool:
        submitter = Submitter(self.run, self.backend, self.settings, self.now)
        wave = max((one.wave for one in self._waiting()), default=1)
        while True:
            self.run.context.stop.check()
            await submitter.submit(wave)
            if self.settings.detach and submitter.made:
                return False
            await self._collect_all()
            if self.settings.rest == "online" or wave >= MOST_WAVES or not await to_thread.run_sync(self._is_left):
                return True
            wave += 1

    def _waiting(self) -> list[Submission]:
        """The jobs whose answers are not recorded yet."""
        return [one for one in self.run.context.journal.submissions.all() if one.progress == "submitted"]

    def _is_left(self) -> bool:
        """Whether a row has neither an entry nor an answer that waits for a repair."""
        journal = self.run.context.journal
        return any(
            len(journal.recorded(chunk.first, chunk.rows) | journal.turns(chunk.first, chunk.rows).keys()) < chunk.rows
            for chunk in self.run.chunks()
        )

    async def _collect_all(self) -> None:
        """Returns when the answers of all jobs are recorded. Raises `NotReady` instead of waiting, with `detach`."""
        poll_s, failed = self.settings.poll_s, None
        pause_s = FIRST_POLL_S if poll_s is None else poll_s
        ends = {one.name: self._ends(one) for one in self._waiting()}
        while True:
            for submission in self._waiting():
                self.run.context.stop.check()
                try:
                    await self._look_at(submission, ends.get(submission.name))
                except ProviderUnusable as fault:
                    failed = failed or fault  # the others are collected first
            if failed is not None:
                raise failed
            if not (waiting := self._waiting()):
                return
            if self.settings.detach:
                states = ", ".join(f"{one.name} ({one.state})" for one in waiting)
                raise NotReady(f"batch jobs have not ended: {states}")
            await self.run.context.stop.pause(pause_s)
            pause_s = min(LAST_POLL_S, pause_s * _POLL_GROWTH) if poll_s is None else poll_s

    def _ends(self, submission: Submission) -> float | None:
        """When a job is cancelled, on the clock of the event loop, which does not jump; None for never."""
        if self.settings.wait_s is None:
            return None
        waited = self.now() - submission.at
        return anyio.current_time() + min(self.settings.wait_s, max(0.0, self.settings.wait_s - waited))

    async def _look_at(self, submission: Submission, ends: float | None) -> None:
        """Asks how far a job is, cancels it when its time is over, and collects it when it has ended."""
        book = self.run.context.journal.submissions
        if (job := await self._seen(submission)) is None:
            return
        known = named(submission, job)
        if known != submission:
            await to_thread.run_sync(book.save, known)
            self._tell(f"{submission.name}: {describe(job)}")
        if job.ended or self._is_given_up(submission):
            await self._collect(known, job)
        elif ends is not None and anyio.current_time() >= ends and submission.name not in self._cancelled:
            self._tell(f"{submission.name} has not ended in time and is cancelled: what it has answered is kept")
            await self.backend.cancel(job.handle)
            self._cancelled[submission.name] = anyio.current_time()

    async def _seen(self, submission: Submission) -> BatchJob | None:
        """The job as its server describes it; None while the server cannot be used, up to the run's patience.

        Raises `Broken` beyond it. The jobs go on meanwhile, so a short outage is no reason to end.
        """
        try:
            job = await self.backend.get(submission.handle or "")
        except Broken as fault:
            now = anyio.current_time()
            if self._away_since is None:
                self._away_since = now
                self._tell(f"{submission.name} cannot be looked at: {fault}")
            if now - self._away_since >= self.run.context.settings.bounds.give_up_s:
                raise
            return None
        self._away_since = None
        return job

    def _is_given_up(self, submission: Submission) -> bool:
        """Whether a job was cancelled long ago, and still has not ended."""
        at = self._cancelled.get(submission.name)
        return at is not None and anyio.current_time() >= at + CANCEL_S

    async def _collect(self, submission: Submission, job: BatchJob) -> None:
        """Records the answers of an ended job, and seals the chunks that are whole by them."""
        context = self.run.context
        recorded = await to_thread.run_sync(self._recorded, submission)
        collection = Collection(
            self.backend,
            submission,
            job=context.job,
            prices=prices_for(context.job, context.settings.bounds),
            journal=context.journal,
            is_recorded=lambda ordinal: bool(recorded[submission.ordinals.position(ordinal) or 0]),
            count=self._count,
            now=self.now,
        )
        try:
            keys = await collection.keys(job)
        except ProviderUnusable:
            await self._void(submission)
            raise
        collected = await collection.record(job, keys)
        if not collected.answered and job.state == "failed":
            await self._void(submission)
            raise ProviderUnusable(
                f"batch job {submission.name} failed and answered nothing: {job.message or 'no reason'}"
            )
        ended = replace(submission, progress="collected", answered=collected.answered)
        await to_thread.run_sync(context.journal.submissions.settle, ended, collected.charged)
        if self.run.follower is not None:
            await to_thread.run_sync(self.run.follower.publish_ended, ended)
        settle(context.budgets, collected.charged)
        context.counters.cost_usd += collected.charged.cost_usd
        context.counters.unpriced += collected.charged.unpriced_calls
        self._tell(told(submission, keys, collected))
        cache = CacheReader(context)
        async with cache.working():
            await cache.store(submission)
        await self._seal()
        self.run.stop_if_too_many_failed()
        context.stop.check()

    async def _void(self, submission: Submission) -> None:
        """Records that a job came to nothing: its rows are submitted again, or asked online, by the next start."""
        ended = replace(submission, progress="void")
        await to_thread.run_sync(self.run.context.journal.submissions.save, ended)
        if self.run.follower is not None:
            await to_thread.run_sync(self.run.follower.publish_ended, ended)

    def _recorded(self, submission: Submission) -> bytearray:
        """By position in the job: 1 for each row that is in a part or in the journal."""
        context, flags = self.run.context, bytearray(submission.rows)
        for index in submission.ordinals.chunks(context.chunks.chunk_of):
            chunk = context.chunks.chunk(index)
            span = range(chunk.first, chunk.first + chunk.rows)
            for ordinal in span if index in self.run.parts else context.journal.recorded(chunk.first, chunk.rows):
                if (position := submission.ordinals.position(ordinal)) is not None:
                    flags[position] = 1
        return flags

    async def _seal(self) -> None:
        """Seals the chunks whose rows are all recorded, as a run without batches does."""
        journal = self.run.context.journal
        whole = await to_thread.run_sync(
            lambda: [one for one in self.run.chunks() if len(journal.recorded(one.first, one.rows)) == one.rows]
        )
        if whole:
            await self.run.context.process(_unasked, engine.in_order(whole), self.run.record_part)

    def _count(self, outcome: Outcome) -> None:
        self.run.context.counters.count(outcome)

    def _tell(self, text: str) -> None:
        self.run.context.counters.notices.append(text)


async def _unasked(_: Request) -> Reply:
    raise RuntimeError("every row of these chunks is recorded")


def describe(job: BatchJob) -> str:
    """The state of a job, for people."""
    counts = job.counts
    text = job.state + (f" ({job.message})" if job.message else "")
    if counts.succeeded is not None:
        text += f", {figures.count(counts.succeeded)} rows answered"
    if counts.failed:
        text += f", {figures.count(counts.failed)} failed"
    return text


def told(submission: Submission, keys: AnswerKeys, collected: Collected) -> str:
    """What a job has brought, for people."""
    text = f"{submission.name}: {figures.count(collected.answered)} of {figures.count(submission.rows)} rows answered"
    if collected.to_repair:
        text += f", {figures.count(collected.to_repair)} of them to be corrected online"
    for reason, count in sorted(collected.failed.items()):
        text += f", {figures.count(count)} failed ({reason})"
    if keys.missing:
        text += f", {figures.count(keys.missing)} missing"
    if said := keys.report():
        text += f"; answers that count for nothing: {said}"
    return text
