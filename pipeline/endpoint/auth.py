"""An always-fresh access token, from google-auth.

One task keeps the token fresh for every worker: it refreshes ahead of expiry, in a thread, and the old token is
served meanwhile, so no request waits for a refresh while a token is valid, and there is never more than one refresh
in flight. The lifetime is measured on the monotonic clock from the moment of the refresh: a jump of the wall clock
changes nothing.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
from google.auth.credentials import Credentials

from pipeline.endpoint.credentials import FOREIGN_ERRORS, Requester, find_credentials, is_refused, reason_of
from pipeline.endpoint.log_events import log
from pipeline.faults import Interrupted, ProviderUnusable

__all__ = ["GoogleTokenSource", "find_credentials", "refreshing"]

_LOG = logging.getLogger(__name__)

MARGIN_S = 225.0
"""A token is renewed at most this many seconds before expiry: google-auth's own threshold."""

MARGIN_SHARE = 0.2
"""The same for short lifetimes, as a share of the lifetime that remains when the token is received."""

PATIENCE_S = 600.0
"""Seconds that rows wait for a token server that is down, once the last token has expired."""

FIRST_PATIENCE_S = 45.0
"""The same before the first token of a run: nothing is waiting yet, and a wrong setting is more likely."""

CLOCK_DRIFT_S = 1.0
"""How far the wall clock may run from the monotonic one while a token is fetched; more, and it was set meanwhile."""


class GoogleTokenSource:
    """A fresh token from google-auth credentials; see `refreshing`."""

    def __init__(self, credentials: Credentials, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._credentials = credentials
        self._clock = clock
        self._token: str | None = None
        self._expires = 0.0
        self._renew_at = 0.0
        self._changed = anyio.Event()
        self._wanted = anyio.Event()
        self._denied: ProviderUnusable | None = None
        self._is_left = False
        self._trouble: str | None = None
        self._request = Requester()
        quota_project = getattr(credentials, "quota_project_id", None)
        self.headers: dict[str, str] = {"x-goog-user-project": quota_project} if quota_project else {}
        self.refreshes = 0

    async def __call__(self) -> str:
        """A token that is valid now; see `pipeline.endpoint.token_source.TokenSource`."""
        while self._token is None or self._clock() >= self._expires:
            await self._next_change()
        return self._token

    def peek(self) -> tuple[str, float] | None:
        """The token and the seconds that it is still valid, from any thread; None when there is none now."""
        token, left = self._token, self._expires - self._clock()
        return None if token is None or left <= 0 else (token, left)

    async def renew(self, rejected: str) -> None:
        """Has a token replaced; the next caller waits for it. See `pipeline.endpoint.token_source.TokenSource`."""
        if self._token == rejected:
            self._token, self._expires = None, self._clock()
            self._wanted.set()

    def hitch(self) -> str | None:
        """Why there is no token; see `pipeline.endpoint.token_source.TellingToken`."""
        if self._trouble is None or (self._token is not None and self._clock() < self._expires):
            return None
        return f"waiting for an access token: {self._trouble}"

    def leave(self) -> None:
        """Ends all waiting; see `pipeline.endpoint.token_source.TellingToken`."""
        self._is_left = True
        self._announce()

    async def _next_change(self) -> None:
        self._check()
        self._wanted.set()
        await self._changed.wait()
        self._check()

    def _check(self) -> None:
        if self._denied is not None:
            raise self._denied
        if self._is_left:
            raise Interrupted("the run is stopping, and no token is there")

    async def keep(self) -> None:
        """Refreshes until cancelled; ends when the credentials are rejected for good."""
        failing_since: float | None = None
        tries = 0
        while self._denied is None:
            try:
                await self._refresh()
                failing_since, tries, self._trouble = None, 0, None
            except FOREIGN_ERRORS as error:
                failing_since = self._clock() if failing_since is None else failing_since
                self._trouble = reason_of(error)
                self._judge(error, failing_since)
                tries += 1
                wait = min(30.0, 0.5 * 2 ** min(tries, 6)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                log(_LOG, "token.failed", wait_s=wait, reason=self._trouble)
                await anyio.sleep(wait)
                continue
            with anyio.move_on_after(max(0.0, self._renew_at - self._clock())):
                await self._wanted.wait()

    async def _refresh(self) -> None:
        self._request = Requester()
        wall, monotonic = time.time(), time.monotonic()
        await anyio.to_thread.run_sync(self._credentials.refresh, self._request, abandon_on_cancel=True)
        token, expiry = self._credentials.token, self._credentials.expiry
        if not isinstance(token, str) or not token:
            raise ValueError("the token server sent no token")
        if abs((time.time() - wall) - (time.monotonic() - monotonic)) > CLOCK_DRIFT_S:
            # google-auth turned the token's life into a moment of the wall clock: there is no saying of which one.
            raise ValueError("the clock was set while a token was fetched")
        now = self._clock()
        left = float("inf") if expiry is None else (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
        if left <= 0:
            raise ValueError("the token server sent a token that has expired already")
        self._token, self._expires = token, now + left
        self._renew_at = self._expires - min(MARGIN_S, MARGIN_SHARE * left)
        self.refreshes += 1
        log(_LOG, "token.renewed", number=self.refreshes, valid_s=left)
        self._wanted = anyio.Event()
        self._announce()

    def _judge(self, error: Exception, failing_since: float) -> None:
        """Gives up when waiting cannot help or has been long enough, but never while a token is still valid."""
        if self._token is not None and self._clock() < self._expires:
            return
        patience = PATIENCE_S if self.refreshes else FIRST_PATIENCE_S
        patience_ended = self._clock() - max(failing_since, self._expires) >= patience
        refused = is_refused(error) or (not self.refreshes and self._request.explains(error))
        if refused or patience_ended:
            waited = "" if refused else f" for {patience:.0f} s"
            status = self._request.status or 200
            said = reason_of(error) + (f" (HTTP {status})" if status >= 400 else "")
            self._denied = ProviderUnusable(f"no access token{waited}: {said}; check the credentials, then run again")
            self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def refreshing(credentials: Credentials) -> AsyncIterator[GoogleTokenSource]:
    """A token that stays fresh inside the block."""
    token = GoogleTokenSource(credentials)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(token.keep)
        yield token
        tasks.cancel_scope.cancel()
