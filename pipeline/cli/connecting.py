"""From flags to an open endpoint: where to ask, and with whose credentials."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.faults import Misuse

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from pipeline.data import Ask
    from pipeline.endpoint import Target

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where to ask and how to sign in: the flags, checked but not used yet."""

    project: str | None = None
    location: str = "global"
    endpoint_id: str | None = None
    base_url: str | None = None
    credentials: Path | None = None

    def __post_init__(self) -> None:
        if self.base_url is not None and urlsplit(self.base_url).scheme not in {"http", "https"}:
            raise Misuse(f"--base-url must begin with https:// or http://, not {self.base_url!r}")


@dataclass(frozen=True, slots=True)
class Access:
    """A target and what opens it: an API key, or Google credentials."""

    target: Target
    api_key: str | None
    credentials: Credentials | None

    @asynccontextmanager
    async def open(self, *, concurrency: int, timeout_s: float, idle_timeout_s: float) -> AsyncIterator[Ask]:
        """The endpoint as an ask, closed at the end of the block."""
        from pipeline.auth import ApiKey, keep_fresh
        from pipeline.endpoint import open_endpoint

        async with AsyncExitStack() as stack:
            token = (
                ApiKey(self.api_key or "")
                if self.credentials is None
                else await stack.enter_async_context(keep_fresh(self.credentials))
            )
            opening = open_endpoint(
                self.target, token, connections=concurrency, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s
            )
            yield (await stack.enter_async_context(opening)).ask


def access(connection: Connection) -> Access:
    """Finds credentials and the target. Raises `Misuse` with the remedy when something is missing.

    With a base URL of another server than Vertex's, OPENAI_API_KEY opens it; a Google token is sent only to Google,
    to this machine, to a URL of Vertex's form, or where --credentials says so.
    """
    from pipeline.auth import find_credentials
    from pipeline.endpoint import Target

    if connection.base_url is not None:
        target = Target.url(connection.base_url)
        key = os.environ.get("OPENAI_API_KEY")
        if connection.credentials is None and not _is_vertex(connection.base_url):
            if key:
                return Access(target, key, None)
            if not _is_loopback(connection.base_url):
                raise Misuse("set OPENAI_API_KEY for this --base-url (any value, if its server wants none)")
        return Access(target, None, find_credentials(connection.credentials)[0])
    credentials, found_project = find_credentials(connection.credentials)
    project = connection.project or found_project
    if not project:
        raise Misuse("no Google Cloud project: name one with --project, or set GOOGLE_CLOUD_PROJECT")
    endpoint = connection.endpoint_id or "openapi"
    return Access(Target.vertex(project, connection.location, endpoint), None, credentials)


def _is_vertex(url: str) -> bool:
    parts = urlsplit(url)
    google = (parts.hostname or "").endswith(".googleapis.com")
    return google or ("/projects/" in parts.path and "/locations/" in parts.path)


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK
