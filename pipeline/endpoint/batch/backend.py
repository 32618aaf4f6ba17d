"""What runs batches: the interface of a provider's batch prediction, and its values."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.data import Request
from pipeline.faults import Fault, UsageError

BatchState = Literal["waiting", "running", "succeeded", "failed", "cancelled", "expired", "partial"]
"""`partial` ended with answers for some rows only. A job that is paused, or being cancelled, has not ended."""

ENDED: frozenset[BatchState] = frozenset({"succeeded", "failed", "cancelled", "expired", "partial"})

TRAFFIC_TYPE = "BATCH"
"""The traffic type of answers by batch: `pipeline.endpoint.prices` charges half for it."""

PRICE_FACTOR = 0.5
"""What a batch costs of the standard price: https://cloud.google.com/vertex-ai/generative-ai/pricing."""


class UnsupportedInBatch(UsageError):
    """The job, or the place that it is to be sent to, cannot be used with batch prediction."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The most that one job takes: rows, and bytes of its input file."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """The rows of a job as its server counts them; None where it does not say."""

    succeeded: int | None = None
    failed: int | None = None
    incomplete: int | None = None


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A job as its server describes it.

    `handle` identifies it to its server, `name` is the one that was chosen for it. `message` is why it failed, on one
    line. `outputs` says where its answers are, for the backend alone.
    """

    handle: str
    name: str
    state: BatchState
    counts: BatchCounts = BatchCounts()
    message: str | None = None
    outputs: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether its state is final: no further answers will come."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """One line of a job's results.

    `key` is that of the row's line, as sent, or None if the line has none, or two that differ. That it was sent, and
    came only once, is for the caller to check. Either `body` is set, of OpenAI's form, as `wire.read_completion` takes
    it, or `fault`: why the row has no answer. A `Transient` one is worth another try. `raw` is the line as received.
    """

    key: str | None
    body: bytes | None
    fault: Fault | None
    raw: bytes


class BatchBackend(Protocol):
    """A provider's batch prediction, for one model and one place. Methods may be called from one event loop.

    All raise `ProviderUnusable` when access is denied, and `Broken` when the server cannot be used, after repeating
    what failed in passing. No message has a secret.
    """

    limits: BatchLimits
    price_factor: float
    """What an answer costs of the standard price."""
    traffic_type: str
    """What replies get as their traffic type, whatever the server says of it."""

    def line(self, key: str, request: Request) -> bytes:
        """The line of a row in the input file, with its line end. Media must be attached. Pure.

        A key has lower case letters, digits, `_` and `-`, 63 at most. Raises `InvalidRow` with the reason when the
        request cannot be sent in a batch.
        """

    async def submit(self, name: str, input_file: Path, *, inputs_key: str) -> BatchJob:
        """The job of this name: one that exists already, or a new one. Never two, even if answers get lost.

        `inputs_key` is where the input goes below the backend's place in the object store, and answers go beside it;
        servers with files of their own do not use it. The same name must come with the same lines and key. Raises
        `Broken` if there is another input, or a job of this name with another one.
        """

    async def get(self, handle: str) -> BatchJob:
        """The job as it is now. Raises `Broken` if there is none."""

    async def find(self, name: str) -> BatchJob | None:
        """The job of this name; None if there is none. Of several, the one that was created first."""

    async def cancel(self, handle: str) -> None:
        """Asks for the end of a job. Its state says when that has happened; one that has ended is left alone."""

    def results(self, job: BatchJob) -> AsyncIterator[BatchAnswer]:
        """The answers that are there, as they are read, in no order. A job that has not ended may have some already."""
