"""Object stores for a command: what it reads by address, with the credentials of its command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading_stores(credentials: Path | None = None) -> Iterator[None]:
    """Lets the block read addresses: `gs://` with these Google credentials, or those of the environment.

    Begins after worker processes were forked, never before: see `pipeline.store.object_store`.
    """
    from pipeline.endpoint.store_access import store_access
    from pipeline.store.stores import opened_stores

    with store_access(credentials) as access, opened_stores(access):
        yield
