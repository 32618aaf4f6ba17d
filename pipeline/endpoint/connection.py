"""From flags to an open endpoint: where to send requests, and with which credentials."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import Ask
from pipeline.endpoint.address import is_here, is_vertex, weighted_url, without_query
from pipeline.faults import UsageError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from pipeline.endpoint.client import EndpointAddress
    from pipeline.endpoint.token_source import TellingToken

GLOBAL_TIERS = ("flex", "priority")
"""Request tiers that exist only in the `global` location."""

_PARTS_OF_ADDRESSES = {
    "--project": re.compile(r"[a-z0-9][a-z0-9.:-]*"),  # older ones have a domain before a colon
    "--location": re.compile(r"[a-z0-9-]+"),
    "--endpoint-id": re.compile(r"[A-Za-z0-9_-]+"),
}
"""The values that these flags allow: they become parts of the address that a token is sent to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where to send requests and how to sign in: the flags, validated but not used yet."""

    project: str | None = None
    locations: Sequence[str] = ("global",)
    endpoint_id: str | None = None
    base_urls: Sequence[str] = ()
    credentials: Path | None = None

    def __post_init__(self) -> None:
        for text in self.base_urls:
            weighted_url(text)
        if self.project is not None:
            object.__setattr__(self, "project", self.project.strip() or None)
        for flag, values in (
            ("--project", [self.project]),
            ("--location", self.locations),
            ("--endpoint-id", [self.endpoint_id]),
        ):
            for value in values:
                if value is not None:
                    _require_part(flag, value)

    @property
    def provider(self) -> str:
        """The name of the provider in the reply cache: equal wherever the same models answer.

        Vertex AI's own models are the same in all locations and for all projects; a deployed endpoint or another
        server is identified by its address.
        """
        if self.base_urls:
            return " ".join(sorted({without_query(weighted_url(text)[1]) for text in self.base_urls}))
        if self.endpoint_id in (None, "openapi"):
            return "vertex"
        return f"vertex {self.project or ''} {' '.join(sorted(self.locations))} {self.endpoint_id}"

    @property
    def quotas(self) -> list[str]:
        """The quotas in use: an address, or a project and location, for each endpoint."""
        if self.base_urls:
            return [without_query(weighted_url(text)[1]) for text in self.base_urls]
        project = self.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
        return [f"vertex {project} {location} {self.endpoint_id or 'openapi'}" for location in self.locations]

    @property
    def endpoints(self) -> int:
        """The number of endpoints that share the work."""
        return len(self.base_urls or self.locations)

    def check_tier(self, tier: str | None) -> None:
        """Raises `UsageError` when a request tier does not exist in the location."""
        elsewhere = [location for location in self.locations if location != "global"]
        if tier in GLOBAL_TIERS and elsewhere and not self.base_urls:
            raise UsageError(f"tier={tier!r} exists on the global location only, not in {', '.join(elsewhere)}")

    def check_model(self, model: str) -> None:
        """Raises `UsageError` for a model name that is not of Vertex AI's form, `publisher/model`.

        That Vertex AI rejects others is inferred: it documents only this form. A deployed endpoint accepts any.
        """
        if model and "/" not in model and not self.base_urls and self.endpoint_id in (None, "openapi"):
            hint = f"write google/{model}" if model.startswith(("gemini", "gemma")) else "other servers need --base-url"
            raise UsageError(f"Vertex AI names its models as in google/gemini-3.5-flash-lite, not {model!r}: {hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a process needs to start: the job as given on the command line, and the connection. Contains no secret."""

    target: str
    inputs: Sequence[str] | None
    model: str | None
    assignments: Sequence[str] | None
    output: str | None
    connection: Connection
    credentials: Path | None = None
    """Those named for object stores; those of an emulator, which the connection then has, are for it alone."""


@dataclass(frozen=True, slots=True)
class OpenEndpoint:
    """An open endpoint: its name in the rows, its share of the work, its ask; and why calls are held up, if known.

    `leave` ends the wait for a token, without which no call can be sent.
    """

    name: str
    weight: float
    ask: Ask
    hitch: Callable[[], str | None] = lambda: None
    leave: Callable[[], None] = lambda: None


Connect = Callable[[], AbstractAsyncContextManager[Sequence[OpenEndpoint]]]
"""Opens the endpoints, and closes them at the end of the block."""


@dataclass(frozen=True, slots=True)
class Access:
    """Targets, and what gives access to them: an API key, or Google credentials."""

    targets: Sequence[tuple[float, EndpointAddress]]
    api_key: str | None
    credentials: Credentials | None

    @property
    def lanes(self) -> list[tuple[str, float]]:
        """The names and weights of the endpoints that `open` opens."""
        return [(target.label, weight) for weight, target in self.targets]

    def connecting(self, *, connections: int, timeout_s: float, idle_timeout_s: float) -> Connect:
        """`open` for a run: with at most `connections` to each endpoint, and time limits per call in seconds."""
        return partial(self.open, connections=connections, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s)

    @asynccontextmanager
    async def open(
        self, *, connections: int, timeout_s: float, idle_timeout_s: float
    ) -> AsyncIterator[Sequence[OpenEndpoint]]:
        """The endpoints as asks, closed at the end of the block."""
        from pipeline.endpoint.client import open_endpoint

        async with AsyncExitStack() as stack:
            token = await stack.enter_async_context(self.token())
            opened = []
            for weight, target in self.targets:
                opening = open_endpoint(
                    target, token, connections=connections, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s
                )
                endpoint = await stack.enter_async_context(opening)
                opened.append(OpenEndpoint(target.label, weight, endpoint.ask, token.hitch, token.leave))
            yield opened

    @asynccontextmanager
    async def token(self) -> AsyncIterator[TellingToken]:
        """The token for all targets, kept fresh inside the block."""
        if self.credentials is None:
            from pipeline.endpoint.token_source import ApiKey

            yield ApiKey(self.api_key or "")
            return
        from pipeline.endpoint.auth import refreshing  # google-auth is slow to load, and a key does not need it

        async with refreshing(self.credentials) as token:
            yield token


def access(connection: Connection) -> Access:
    """Finds credentials and the targets. Raises `UsageError` with the remedy when something is missing.

    A base URL of another server than Vertex AI needs OPENAI_API_KEY; a Google token is sent only to Google, to this
    machine, to a URL of Vertex's form, or where --credentials says so. Unusable proxies and certificate authorities
    are reported here too.
    """
    found = _access(connection)
    _require_way([target.base_url for _, target in found.targets], signs_in=found.credentials is not None)
    return found


def _access(connection: Connection) -> Access:
    from pipeline.endpoint.client import EndpointAddress

    if connection.base_urls:
        weighted = [weighted_url(text) for text in connection.base_urls]
        targets = [(weight, EndpointAddress.url(url)) for weight, url in weighted]
        if connection.credentials is None and not all(is_vertex(url) for _, url in weighted):
            key = api_key(os.environ.get("OPENAI_API_KEY"))
            if key and any(is_vertex(url) and not is_here(url) for _, url in weighted):
                raise UsageError(
                    "OPENAI_API_KEY is not for Google: run the servers apart, or name --credentials for all"
                )
            if key:
                return Access(targets, key, None)
            if not all(is_here(url) for _, url in weighted):
                raise UsageError("set OPENAI_API_KEY for this --base-url (any value, if its server wants none)")
        try:
            return Access(targets, None, _credentials(connection, needs_project=False)[0])
        except UsageError as error:
            if connection.credentials is None and any(is_here(url) for _, url in weighted):
                raise UsageError(
                    f"{error}; or set OPENAI_API_KEY, to any value, for a server that takes keys"
                ) from None
            raise
    try:
        credentials, found_project = _credentials(connection, needs_project=connection.project is None)
    except UsageError as error:
        if connection.credentials is None and os.environ.get("OPENAI_API_KEY"):
            raise UsageError(f"{error}; OPENAI_API_KEY is for the server of a --base-url only") from None
        raise
    project = connection.project or found_project
    if not project:
        raise UsageError("no Google Cloud project: name one with --project, or set GOOGLE_CLOUD_PROJECT")
    _require_part("--project", project)
    endpoint = connection.endpoint_id or "openapi"
    targets = [(1.0, EndpointAddress.vertex(project, location, endpoint)) for location in connection.locations]
    return Access(targets, None, credentials)


def api_key(value: str | None) -> str | None:
    """The key in OPENAI_API_KEY, without surrounding blanks, line ends and quotes, or a leading `Bearer`.

    None when it is empty. Raises `UsageError`, without quoting the key, if a header cannot contain it.
    """
    key = (value or "").strip()
    if len(key) > 1 and key[0] == key[-1] and key[0] in "\"'":
        key = key[1:-1].strip()
    key = re.sub(r"\Abearer(\s+|\Z)", "", key, flags=re.IGNORECASE)
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UsageError(
            "OPENAI_API_KEY holds a blank, a line end or a character beyond ASCII: set it to the key alone"
        )
    return key or None


def _require_part(flag: str, value: str) -> None:
    if not _PARTS_OF_ADDRESSES[flag].fullmatch(value):
        raise UsageError(
            f"{flag} is a plain name, of letters, digits and hyphens: its value cannot be part of an address"
        )


def _require_way(base_urls: Sequence[str], *, signs_in: bool) -> None:
    """Raises `UsageError` for a proxy or certificate authorities that calls or token requests cannot use."""
    from pipeline.endpoint.network import ca_bundles, proxy_for, tls_context

    for url in [*base_urls, *(["https://oauth2.googleapis.com"] if signs_in else [])]:
        proxy_for(url)
    if any(url.startswith("https:") for url in base_urls):
        tls_context()
    if signs_in:
        ca_bundles()


def _credentials(connection: Connection, *, needs_project: bool) -> tuple[Credentials, str | None]:
    from pipeline.endpoint.auth import find_credentials

    return find_credentials(connection.credentials, needs_project=needs_project)
