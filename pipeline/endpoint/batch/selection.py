"""Whether a job can be asked by batch, at all and at a place; what cannot is refused before anything is sent."""

from __future__ import annotations

from typing import Protocol

from pipeline.endpoint.batch.backend import UnsupportedInBatch


class BatchableJob(Protocol):
    """What decides whether a job can be asked by batch: `pipeline.Job` is one."""

    @property
    def name(self) -> str:
        """The job's name."""

    @property
    def model(self) -> str:
        """The model that all rows ask; empty when each row names its own."""

    @property
    def stream(self) -> bool:
        """Whether answers are streamed."""

    @property
    def tier(self) -> str | None:
        """The request tier."""

    @property
    def runs_tools(self) -> bool:
        """Whether the model's calls are executed, so that a row takes several turns."""


def check_job(job: BatchableJob) -> None:
    """Raises `UnsupportedInBatch`, with the remedy, for a job that cannot be asked by batch."""
    if not job.model:
        raise UnsupportedInBatch(f"a batch asks one model, and the job {job.name!r} names none: give one with --model")
    if job.runs_tools:
        raise UnsupportedInBatch(
            f"the job {job.name!r} runs tools, and a batch has one turn: leave out --batch, or set "
            f"execute_tools=False to record the calls alone"
        )
    if job.stream:
        raise UnsupportedInBatch(f"the job {job.name!r} streams its answers, and a batch cannot: set stream=False")
    if job.tier is not None:
        raise UnsupportedInBatch(
            f"tier={job.tier!r} is for online requests, and a batch has its own price: leave out `tier` or --batch"
        )
