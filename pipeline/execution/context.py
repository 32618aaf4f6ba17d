"""What a process has of a run: the run's only process, the parent of workers, and each worker."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import anyio
import pyarrow as pa

from pipeline.data import Ask
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.execution import engine
from pipeline.execution.chunks import ChunkJournal, ChunkWorker, Keep, RowObserver
from pipeline.execution.heap import use_one_heap
from pipeline.execution.rate_memory import GrantedRates
from pipeline.execution.settings import Settings
from pipeline.faults import Broken, UsageError
from pipeline.job.job import Job
from pipeline.policy import Account, Budget, LocalUpstream, Shutdown
from pipeline.policy.compose import (
    AnyUpstream,
    CacheSettings,
    ComposedAsk,
    ProcessLimits,
    compose,
    compose_within,
    prices_for,
    workers_for,
)
from pipeline.source import Survey
from pipeline.storage.dataset import Dataset
from pipeline.storage.journal import Journal
from pipeline.storage.reply_cache import Cache
from pipeline.storage.run_folder import RunFolder, RunIdentity
from pipeline.totals.counters import Counters

SPARE_DESCRIPTORS = 64
"""File descriptors needed besides the connections to the endpoints."""

AnyBudget = TypeVar("AnyBudget", bound=Budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext(Generic[AnyBudget]):
    """What a process works with.

    `journal` is the run's own or, in a worker, the worker's. Runs that are executed together share `counters`, `stop`
    and `budgets`.
    """

    settings: Settings
    folder: RunFolder
    chunks: ChunkWorker
    journal: Journal
    cache: Cache | None
    budgets: Sequence[AnyBudget]
    counters: Counters
    stop: Shutdown
    observer: RowObserver | None = None
    """Who is given each outcome, if anybody."""

    @property
    def job(self) -> Job:
        """The job."""
        return self.chunks.job

    @property
    def plan(self) -> RunIdentity:
        """The identity of the run."""
        return self.chunks.plan

    @property
    def survey(self) -> Survey:
        """The survey of the input."""
        return self.chunks.survey

    @property
    def dataset(self) -> Dataset:
        """The dataset that the run writes."""
        return self.chunks.dataset

    @property
    def rates(self) -> GrantedRates:
        """The store of the rates that the endpoints granted."""
        return GrantedRates(self.folder.run, self.settings.rates, self.folder.files)

    def compose(self, endpoints: Sequence[OpenEndpoint]) -> ComposedAsk[LocalUpstream]:
        """The ask of the whole run over its endpoints, at the rates last granted."""
        bounds = replace(self.settings.bounds, granted=self.rates.load())
        return compose(
            self.job,
            bounds,
            endpoints,
            self.budgets,
            counters=self.counters,
            stop=self.stop,
            store=self.cache,
            books=self.journal,
        )

    def compose_within(
        self, limits: ProcessLimits[AnyUpstream], endpoints: Sequence[OpenEndpoint]
    ) -> ComposedAsk[AnyUpstream]:
        """The ask of a process that applies these limits instead."""
        bounds = self.settings.bounds
        account = Account(prices_for(self.job, bounds), self.counters, self.stop, self.budgets, self.journal)
        return compose_within(limits, self.job, bounds, endpoints, account, self.cache)

    async def process(
        self,
        ask: Ask,
        chunks: engine.NextChunk,
        keep: Keep,
        *,
        records: ChunkJournal | None = None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Asks the rows of the given chunks, and has each part kept. Returns when all that came is durable.

        That is at the end, or soon after the stop was requested. `records` are the entries of the run, if not only in
        the journal; `failed` is called after each failed row.
        """
        concurrency = self.settings.bounds.concurrency
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.journal.keep_writing)
            if self.cache is not None:
                tasks.start_soon(self.cache.keep_working, self.counters.notices.append)
            await engine.process_chunks(
                chunks,
                self.chunks.callbacks(
                    ask, records or self.journal, keep, self.counters, self.cache, failed, self.observer
                ),
                workers=workers_for(concurrency),
                stop=self.stop,
                grace_s=self.settings.grace_s,
                open_chunks=self.chunks.open_chunks(concurrency),
            )
            with suppress(Broken):  # it already is the reason of the stop
                await self.journal.flush()
            tasks.cancel_scope.cancel()


def prepare_process(settings: Settings) -> None:
    """Prepares this process for a run: for many small batches, and for many connections.

    The process of another program is left as it is. Raises `UsageError` if it may not open enough files.
    """
    if settings.in_host:
        require_descriptors(settings.bounds.concurrency, settings.endpoints)
        return
    use_one_heap()
    # Arrow's own pools retain memory after many small batches, so that a long run would grow.
    pa.set_memory_pool(pa.system_memory_pool())
    ensure_descriptors(settings.bounds.concurrency, settings.endpoints)


def ensure_descriptors(concurrency: int, endpoints: int = 1) -> None:
    """Raises the soft limit of open files to what the concurrency needs, now and after tuning.

    Raises `UsageError` if the hard limit is too low for the current concurrency.
    """
    needed = concurrency * endpoints + SPARE_DESCRIPTORS
    wanted = workers_for(concurrency) * endpoints + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        calls = f"{concurrency} calls in flight" + (f" to each of {endpoints} endpoints" if endpoints > 1 else "")
        raise UsageError(f"{calls} need {needed} open files, but the limit is {hard} (ulimit -Hn): lower --concurrency")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def require_descriptors(concurrency: int, endpoints: int = 1) -> None:
    """Raises `UsageError` if the soft limit of open files is too low for the concurrency; it is not changed."""
    needed = concurrency * endpoints + SPARE_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise UsageError(
            f"{concurrency} calls in flight need {needed} open files, but the limit of this process is {soft}, which "
            f"is left as it is: raise it with resource.setrlimit, or lower --concurrency"
        )


@contextmanager
def open_cache(reuse: CacheSettings | None) -> Iterator[Cache | None]:
    """The cache of earlier replies; None if they may not be reused. Raises `UsageError` if it cannot be read."""
    if reuse is None:
        yield None
        return
    with closing(Cache(reuse.folder, reuse.endpoint)) as cache:
        yield cache
