"""Access to object stores: Google's tokens, kept fresh as for calls, and the environment's ways through the network."""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from pipeline.endpoint.address import is_here
from pipeline.endpoint.network import ca_bundles, proxy_for, proxy_secrets
from pipeline.endpoint.redaction import redact_settings, redact_tokens
from pipeline.faults import UsageError

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from pipeline.endpoint.auth import GoogleTokenSource

ENDPOINT_VARIABLES = {
    "gs": ("STORAGE_EMULATOR_HOST",),
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "az": ("AZURITE_BLOB_STORAGE_URL",),
}
"""The variables that name another server than the provider's, by scheme, in order of precedence."""

_PROVIDERS = {
    "gs": "https://storage.googleapis.com",
    "s3": "https://s3.amazonaws.com",
    "az": "https://blob.core.windows.net",
}
"""Where requests go otherwise; accounts and buckets are names below these hosts, as NO_PROXY may mean them."""

_NOWHERE = "http://127.0.0.1:9"


@contextmanager
def store_access(credentials: Path | None = None, *, origin: str | None = None) -> Iterator[EnvironmentAccess]:
    """Access with Google credentials from a file, or wherever google-auth finds them; S3 and Azure by their own rules.

    `origin` is the server of an emulator's buckets, which then counts instead of what the environment says.

    Nothing is looked for before the first request to Cloud Storage, whose token is then kept fresh until the end of the
    block, in a thread of its own: rows are read where no event loop runs.
    """
    stack = ExitStack()
    try:
        yield EnvironmentAccess(credentials, stack, origin)
    finally:
        stack.close()  # without the block's exception, which is not one of the token's task group


class EnvironmentAccess:
    """See `store_access`, and `pipeline.store.object_store.StoreAccess`."""

    def __init__(self, credentials: Path | None, stack: ExitStack, origin: str | None = None) -> None:
        self._credentials = credentials
        self._origin = origin
        self._stack = stack
        self._lock = threading.Lock()
        self._kept: tuple[BlockingPortal, GoogleTokenSource] | None = None

    def endpoint(self, scheme: str) -> str | None:
        """The server that the environment names. A Google token goes to Google, this machine, or with --credentials.

        Raises `UsageError` elsewhere.
        """
        if self._origin is not None:
            return self._origin
        found = next((name for name in ENDPOINT_VARIABLES[scheme] if os.environ.get(name, "").strip()), None)
        if found is None:
            return None
        value = os.environ[found].strip().rstrip("/")
        url = value if "://" in value else f"http://{value}"
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise UsageError(f"{found} is no URL of a server: write it as in http://127.0.0.1:9000")
        google = parts.scheme == "https" and parts.hostname.endswith(".googleapis.com")
        if scheme == "gs" and not (google or is_here(url) or self._credentials):
            raise UsageError(
                f"{found} names another server than Google's, which would get a Google token: "
                f"name --credentials for it, or unset the variable"
            )
        return url

    def client_options(self, scheme: str) -> dict[str, Any]:
        """Proxy and certificate authorities, by the same rules as calls."""
        url = self.endpoint(scheme) or _PROVIDERS[scheme]
        options: dict[str, Any] = {}
        proxy = proxy_for(url)
        if proxy is not None:
            scheme, _, rest = proxy.url.partition("://")
            user = f"{quote(proxy.user, safe='')}:{quote(proxy.password, safe='')}@" if proxy.authorization else ""
            options["proxy_url"] = f"{scheme}://{user}{rest}"
        elif urllib.request.getproxies():
            # A direct connection, which the client underneath makes only where it is told of another proxy.
            options |= {"proxy_url": _NOWHERE, "proxy_excludes": urlsplit(url).hostname or ""}
        files = [Path(bundle) for bundle in ca_bundles()]
        if found := b"\n".join(file.read_bytes() for file in files if file.is_file()):
            options["root_certificate"] = found
        return options

    def google_headers(self) -> Mapping[str, str]:
        """The project that requests are counted for, if the credentials name one."""
        return self._source()[1].headers

    def google_token(self) -> str:
        """A token that is valid now; see `StoreAccess`."""
        portal, source = self._source()
        now = source.peek()
        return now[0] if now else portal.call(source)

    def renew(self, rejected: str) -> None:
        """Has a token replaced; see `StoreAccess`."""
        portal, source = self._source()
        portal.call(source.renew, rejected)

    def redact(self, text: str) -> str:
        """The text without tokens, keys, and what signs in to a proxy."""
        return redact_settings(redact_tokens(text), proxy_secrets())

    def _source(self) -> tuple[BlockingPortal, GoogleTokenSource]:
        with self._lock:
            if self._kept is None:
                from anyio.from_thread import start_blocking_portal

                from pipeline.endpoint.auth import find_credentials, refreshing

                credentials, _ = find_credentials(self._credentials, needs_project=False)
                portal = self._stack.enter_context(start_blocking_portal())
                source = self._stack.enter_context(portal.wrap_async_context_manager(refreshing(credentials)))
                self._kept = portal, source
            return self._kept
