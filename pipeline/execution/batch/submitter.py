"""Submits rows as batch jobs: each is recorded, here and in the bucket, before it is created."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from hashlib import file_digest

from anyio import to_thread

from pipeline.data import Entry, Row
from pipeline.endpoint.batch.backend import BatchBackend, BatchJob
from pipeline.execution import engine
from pipeline.execution.batch.reservation import Reservation
from pipeline.execution.batch.reuse import CacheReader
from pipeline.execution.batch.settings import BatchSettings
from pipeline.execution.batch.spool import InputFile, LineWriter
from pipeline.execution.run import Run
from pipeline.faults import Broken
from pipeline.storage.submissions import Submission
from pipeline.text import figures

_ROWS_AT_ONCE = 256


class Submitter:
    """Turns the rows of a run that no job has into jobs. Every method can be called again after a kill at any point."""

    def __init__(self, run: Run, backend: BatchBackend, settings: BatchSettings, now: Callable[[], float]) -> None:
        self._run = run
        self._context = run.context
        self._backend = backend
        self._settings = settings
        self._now = now
        self._book = run.context.journal.submissions
        self._writer = LineWriter(run.context.job, backend)
        self._cache = CacheReader(run.context)
        self.made = 0
        """Jobs that were created by this start."""
        self._unsuited: list[str] = []

    async def submit(self, wave: int) -> None:
        """Creates the jobs that are recorded and not created, then jobs for the rows that belong into this wave.

        Raises `BudgetExhausted` before the first of these if they do not fit.
        """
        for submission in self._book.all():
            if submission.progress == "submitted" and submission.handle is None:
                await self._create(submission)
        # All recorded jobs are created: what lies there is of a start that was killed while it wrote.
        await to_thread.run_sync(self._context.folder.remove_batch_inputs)
        wanted = await to_thread.run_sync(lambda: sum(len(rows) for _, rows in self._wanted(wave)))
        if not wanted:
            return
        reservation = await to_thread.run_sync(Reservation, self._run, self._backend)
        waiting = [one for one in self._book.all() if one.progress == "submitted"]
        reservation.require(wanted, waiting, self._context.budgets)
        async with self._cache.working():
            await self._submit_rows(wave, reservation)
        if self._unsuited:
            count, first = len(self._unsuited), self._unsuited[0]
            self._tell(f"{figures.count(count)} rows cannot be asked by batch and are asked online: {first}")

    async def _submit_rows(self, wave: int, reservation: Reservation) -> None:
        file: InputFile | None = None
        try:
            for chunk, wanted in self._wanted(wave):
                batches = self._context.chunks.source.chunk(chunk.index)
                while (batch := await to_thread.run_sync(next, batches, None)) is not None:
                    rows = [row for row in batch.rows if row.ordinal in wanted]
                    for start in range(0, len(rows), _ROWS_AT_ONCE):
                        self._context.stop.check()
                        file = await self._write(rows[start : start + _ROWS_AT_ONCE], file, wave, reservation)
            if file is not None:
                await self._record(file, wave, reservation)
        finally:
            if file is not None:
                file.close()

    async def _write(
        self, rows: Sequence[Row], file: InputFile | None, wave: int, reservation: Reservation
    ) -> InputFile | None:
        """Adds rows to the file, and submits it when it is full; returns the one that is being written."""
        known = await self._cache.known(rows)
        await self._keep(known)
        hits = {ordinal for ordinal, _ in known}
        rows = [row for row in rows if row.ordinal not in hits]
        while rows:
            file = file or self._opened(wave)
            written = await to_thread.run_sync(self._writer.write, rows, file)
            await self._keep(written.invalid)
            self._unsuited += written.unsuited
            if written.stopped_at is None:
                break
            await self._record(file, wave, reservation)
            file, rows = None, rows[rows.index(written.stopped_at) :]
        return file

    def _opened(self, wave: int) -> InputFile:
        folder, number = self._context.folder, self._next_number(wave)
        return InputFile(folder.batch_input(wave, number), self._backend.limits, folder.files)

    def _next_number(self, wave: int) -> int:
        return max((one.number + 1 for one in self._book.all() if one.wave == wave), default=0)

    async def _keep(self, entries: Sequence[tuple[int, Entry]]) -> None:
        """Records rows that need no job: their answer is known, or they cannot be asked."""
        if entries:
            await to_thread.run_sync(self._context.journal.record, entries)
        for ordinal, entry in entries:
            self._context.counters.count(self._context.job.outcome(ordinal, entry))

    async def _record(self, file: InputFile, wave: int, reservation: Reservation) -> None:
        sha256 = await to_thread.run_sync(file.finish)
        if not len(file.ordinals):
            self._context.folder.files.remove([file.path])
            return
        usd, tokens = reservation.of(len(file.ordinals))
        number = self._next_number(wave)
        submission = Submission(
            wave=wave,
            number=number,
            name=f"pipeline-{self._context.plan.run_id}-{wave}-{number}",
            ordinals=file.ordinals,
            sha256=sha256,
            size=file.size,
            at=self._now(),
            usd=usd,
            tokens=tokens,
            place=self._settings.place,
        )
        await to_thread.run_sync(self._book.save, submission)
        await self._create(submission)

    async def _create(self, submission: Submission) -> None:
        """Creates a recorded job, or adopts it if an earlier start, or another machine, has created it."""
        if self._run.follower is not None:
            await to_thread.run_sync(self._run.follower.publish_submission, _as_recorded(submission))
        path = self._context.folder.batch_input(submission.wave, submission.number)
        # Without its file, as on another machine, it is looked for first: to write the file again takes long.
        job = None if path.is_file() else await self._backend.find(submission.name)
        if job is None:
            await to_thread.run_sync(self._require_input, submission)
            key = f"{self._context.plan.run_id}/{submission.wave}-{submission.number}/input.jsonl"
            job = await self._backend.submit(submission.name, path, inputs_key=key)
        await to_thread.run_sync(self._book.save, named(submission, job))
        await to_thread.run_sync(self._context.folder.files.remove, [path])
        self.made += 1
        self._tell(f"{submission.name}: {figures.count(submission.rows)} rows submitted")

    def _require_input(self, submission: Submission) -> None:
        """Makes sure that the input file is there, with the lines of its record: another machine has to write it again.

        Raises `Broken` if they are others now.
        """
        path = self._context.folder.batch_input(submission.wave, submission.number)
        if path.is_file():
            with path.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() == submission.sha256:
                    return
        with closing(InputFile(path, self._backend.limits, self._context.folder.files)) as again:
            self._writer.write(self._rows_of(submission), again)
            if again.finish() != submission.sha256:
                raise Broken(
                    f"the input of batch job {submission.name} cannot be made again, since media or the job's code "
                    f"have changed: `pipeline cancel {self._run.output}` gives it up, then run again"
                )

    def _rows_of(self, submission: Submission) -> Iterator[Row]:
        for index in submission.ordinals.chunks(self._context.chunks.chunk_of):
            for batch in self._context.chunks.source.chunk(index):
                yield from (row for row in batch.rows if row.ordinal in submission.ordinals)

    def _wanted(self, wave: int) -> Iterator[tuple[engine.Chunk, set[int]]]:
        """The rows that belong into this wave, by chunk: not recorded, not begun, and in no job of it or after it."""
        taken = [
            one.ordinals
            for one in self._book.all()
            if one.progress == "submitted" or (one.progress == "collected" and one.wave >= wave)
        ]
        journal = self._context.journal
        for chunk in self._run.chunks():
            begun = journal.recorded(chunk.first, chunk.rows) | journal.turns(chunk.first, chunk.rows).keys()
            rows = {
                ordinal
                for ordinal in range(chunk.first, chunk.first + chunk.rows)
                if ordinal not in begun and not any(ordinal in ordinals for ordinals in taken)
            }
            if rows:
                yield chunk, rows

    def _tell(self, text: str) -> None:
        self._context.counters.notices.append(text)


def _as_recorded(submission: Submission) -> Submission:
    """The record as it was at first: byte for byte what an earlier start may have uploaded."""
    return replace(submission, handle=None, state="waiting", message=None, answered=0, progress="submitted")


def named(submission: Submission, job: BatchJob) -> Submission:
    """The record of a job with what its server says of it."""
    return replace(submission, handle=job.handle, state=job.state, message=job.message)
