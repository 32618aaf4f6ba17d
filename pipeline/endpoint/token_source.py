"""What opens an endpoint: a token that may have to be renewed, or a key that never changes."""

from __future__ import annotations

from typing import Protocol

from pipeline.faults import ProviderUnusable


class TokenSource(Protocol):
    """What the endpoint needs of a credential."""

    headers: dict[str, str]
    """Headers that go with every request, besides `Authorization`."""

    async def __call__(self) -> str:
        """A token that is alive now; waits for one if need be. Raises `ProviderUnusable` when there will be none."""

    async def renew(self, rejected: str) -> None:
        """Has `rejected` replaced by another token; one renewal serves everyone who asks. Raises `ProviderUnusable`.

        That has a `kind` where there can be no other, and so it is the answer that counts.
        """


class TellingToken(TokenSource, Protocol):
    """A token that says why it is waited for."""

    def hitch(self) -> str | None:
        """Why calls wait for a token; None when they do not."""

    def leave(self) -> None:
        """Ends all waiting: whoever needs a token and has none gets `Interrupted`. One that lives still serves."""


class ApiKey:
    """A key that never changes."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.headers: dict[str, str] = {}

    async def __call__(self) -> str:
        """The key."""
        return self._key

    def hitch(self) -> None:
        """Nobody waits for a key."""

    def leave(self) -> None:
        """Nobody waits for a key."""

    async def renew(self, rejected: str) -> None:  # noqa: ARG002 - there is no other key
        """Raises `ProviderUnusable`: there is no other key."""
        raise ProviderUnusable(
            "the endpoint does not accept the API key: check OPENAI_API_KEY", http_status=401, kind="401"
        )
