"""From flags to an open endpoint: where to ask, and with whose credentials."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.faults import Misuse

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from pipeline.composition import Opened
    from pipeline.endpoint import Target
    from pipeline.execute import Connect
    from pipeline.job import Job
    from pipeline.token import Token

GLOBAL_TIERS = ("flex", "priority")
"""Request tiers that only the `global` location has."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where to ask and how to sign in: the flags, checked but not used yet."""

    project: str | None = None
    locations: Sequence[str] = ("global",)
    endpoint_id: str | None = None
    base_urls: Sequence[str] = ()
    credentials: Path | None = None

    def __post_init__(self) -> None:
        for text in self.base_urls:
            _, url = _weighted(text)
            if "@" in url:
                raise Misuse("--base-url takes no user name and password: set OPENAI_API_KEY, or name --credentials")
            if not _is_base_url(url):
                raise Misuse(f"--base-url must begin with https:// or http:// (or WEIGHT*https://), not {text!r}")

    @property
    def provider(self) -> str:
        """Who answers, by a name for the reply cache: the same wherever the same models are asked.

        Vertex AI's own models are the same in all its locations, for all projects; a deployed endpoint or another
        server is known by its address.
        """
        if self.base_urls:
            return " ".join(sorted({_weighted(text)[1].rstrip("/") for text in self.base_urls}))
        if self.endpoint_id in (None, "openapi"):
            return "vertex"
        return f"vertex {self.project or ''} {' '.join(sorted(self.locations))} {self.endpoint_id}"

    @property
    def quotas(self) -> list[str]:
        """Whose quotas are used: an address or a project and place for each endpoint."""
        if self.base_urls:
            return [_weighted(text)[1].rstrip("/") for text in self.base_urls]
        project = self.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
        return [f"vertex {project} {location} {self.endpoint_id or 'openapi'}" for location in self.locations]

    @property
    def endpoints(self) -> int:
        """How many endpoints share the work."""
        return len(self.base_urls or self.locations)

    def check_tier(self, tier: str | None) -> None:
        """Raises `Misuse` when a request tier is wanted where Vertex AI does not have it."""
        elsewhere = [location for location in self.locations if location != "global"]
        if tier in GLOBAL_TIERS and elsewhere and not self.base_urls:
            raise Misuse(f"tier={tier!r} exists on the global location only, not in {', '.join(elsewhere)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a process needs to begin: the job as the command line described it, and where to ask. It holds no secret."""

    target: str
    inputs: Sequence[str] | None
    model: str | None
    assignments: Sequence[str] | None
    output: Path | None
    connection: Connection


@dataclass(frozen=True, slots=True)
class Access:
    """Targets, and what opens them: an API key, or Google credentials."""

    targets: Sequence[tuple[float, Target]]
    api_key: str | None
    credentials: Credentials | None

    @property
    def lanes(self) -> list[tuple[str, float]]:
        """The names and weights of what `open` opens."""
        return [(target.label, weight) for weight, target in self.targets]

    def connecting(self, job: Job, concurrency: int) -> Connect:
        """`open` for a run of this job, with connections for as many calls in flight as it may be tuned to."""
        from pipeline.composition import workers_for

        return partial(
            self.open,
            connections=workers_for(concurrency),
            timeout_s=job.timeout_s,
            idle_timeout_s=job.idle_timeout_s,
        )

    @asynccontextmanager
    async def open(
        self, *, connections: int, timeout_s: float, idle_timeout_s: float
    ) -> AsyncIterator[Sequence[Opened]]:
        """The endpoints as asks, closed at the end of the block."""
        from pipeline.composition import Opened
        from pipeline.endpoint import open_endpoint

        async with AsyncExitStack() as stack:
            token = await stack.enter_async_context(self._token())
            opened = []
            for weight, target in self.targets:
                opening = open_endpoint(
                    target, token, connections=connections, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s
                )
                endpoint = await stack.enter_async_context(opening)
                opened.append(Opened(target.label, weight, endpoint.ask))
            yield opened

    @asynccontextmanager
    async def _token(self) -> AsyncIterator[Token]:
        if self.credentials is None:
            from pipeline.token import ApiKey

            yield ApiKey(self.api_key or "")
            return
        from pipeline.auth import keep_fresh  # google-auth takes a while to load, and a key needs none of it

        async with keep_fresh(self.credentials) as token:
            yield token


def go_straight() -> None:
    """Has connections to this machine made without the environment's proxies, which have no way to it."""
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))


def access(connection: Connection) -> Access:
    """Finds credentials and the targets. Raises `Misuse` with the remedy when something is missing.

    With a base URL of another server than Vertex's, OPENAI_API_KEY opens it; a Google token is sent only to Google,
    to this machine, to a URL of Vertex's form, or where --credentials says so.
    """
    from pipeline.endpoint import Target

    if connection.base_urls:
        weighted = [_weighted(text) for text in connection.base_urls]
        targets = [(weight, Target.url(url)) for weight, url in weighted]
        key = os.environ.get("OPENAI_API_KEY")
        if connection.credentials is None and not all(_is_vertex(url) for _, url in weighted):
            if key and any(_is_vertex(url) and not _is_loopback(url) for _, url in weighted):
                raise Misuse("OPENAI_API_KEY is not for Google: run the servers apart, or name --credentials for all")
            if key:
                return Access(targets, key, None)
            if not all(_is_loopback(url) for _, url in weighted):
                raise Misuse("set OPENAI_API_KEY for this --base-url (any value, if its server wants none)")
        return Access(targets, None, _credentials(connection)[0])
    credentials, found_project = _credentials(connection)
    project = connection.project or found_project
    if not project:
        raise Misuse("no Google Cloud project: name one with --project, or set GOOGLE_CLOUD_PROJECT")
    endpoint = connection.endpoint_id or "openapi"
    targets = [(1.0, Target.vertex(project, location, endpoint)) for location in connection.locations]
    return Access(targets, None, credentials)


def _credentials(connection: Connection) -> tuple[Credentials, str | None]:
    from pipeline.auth import find_credentials

    return find_credentials(connection.credentials)


def _weighted(text: str) -> tuple[float, str]:
    """`2*https://...` is a base URL that gets twice the work of one without a weight."""
    weight, star, url = text.partition("*")
    try:
        return (float(weight), url) if star else (1.0, text)
    except ValueError:
        return 1.0, text


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        return False


def _is_vertex(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme != "https" and not _is_loopback(url):
        return False
    google = (parts.hostname or "").endswith(".googleapis.com")
    return google or ("/projects/" in parts.path and "/locations/" in parts.path)


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK
