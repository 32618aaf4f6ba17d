"""Credentials for an endpoint: a token that may have to be renewed, or a key that never changes."""

from __future__ import annotations

from typing import Protocol

from pipeline.faults import ProviderUnusable


class TokenSource(Protocol):
    """What the endpoint needs from a credential."""

    headers: dict[str, str]
    """Headers for every request, in addition to `Authorization`."""

    async def __call__(self) -> str:
        """A token that is valid now; waits for one if necessary. Raises `ProviderUnusable` when there will be none."""

    async def renew(self, rejected: str) -> None:
        """Has `rejected` replaced by another token; one renewal serves all callers. Raises `ProviderUnusable`.

        The fault has a `kind` when there can be no other token, so that the rejection itself is what counts.
        """


class TellingToken(TokenSource, Protocol):
    """A token source that says why calls wait for a token."""

    def hitch(self) -> str | None:
        """Why calls wait for a token; None when they do not."""

    def leave(self) -> None:
        """Ends all waiting: callers without a token get `Interrupted`. A valid token is still served."""


class ApiKey:
    """A key that never changes."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.headers: dict[str, str] = {}

    async def __call__(self) -> str:
        """The key."""
        return self._key

    def hitch(self) -> None:
        """Does nothing: a key is always available."""

    def leave(self) -> None:
        """Does nothing: a key is always available."""

    async def renew(self, rejected: str) -> None:  # noqa: ARG002 - there is no other key
        """Raises `ProviderUnusable`: there is no other key."""
        raise ProviderUnusable(
            "the endpoint does not accept the API key: check OPENAI_API_KEY", http_status=401, kind="401"
        )
