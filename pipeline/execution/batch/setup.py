"""How a run is asked by batch, and where: its settings, its place, and its backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.execution.batch.settings import BatchSettings
from pipeline.store.address import Address

if TYPE_CHECKING:
    from pipeline.endpoint.batch.backend import BatchBackend
    from pipeline.endpoint.connection import Access


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSetup:
    """How a run is asked by batch, and where."""

    settings: BatchSettings
    place: Address | None
    """The folder in Cloud Storage for inputs and answers; None for servers that take files themselves."""
    credentials: Path | None
    store_origin: str | None = None
    """The server of the buckets, if it is an emulator's."""


@asynccontextmanager
async def opened_backend(access: Access, model: str, setup: BatchSetup, run_id: str) -> AsyncIterator[BatchBackend]:
    """The backend of a run, closed at the end of the block."""
    from pipeline.endpoint.batch.selection import open_batches
    from pipeline.endpoint.store_access import store_access

    async with AsyncExitStack() as stack:
        stores = stack.enter_context(store_access(setup.credentials, origin=setup.store_origin))
        labels = {"pipeline_run": run_id[:8]}
        opening = open_batches(access, model, place=setup.place, stores=stores, labels=labels)
        yield await stack.enter_async_context(opening)
