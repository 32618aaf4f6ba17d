"""What every test may use."""

from __future__ import annotations

import hypothesis
import pytest

# A shared machine may be slow at any moment; what a test claims is never how fast it is.
hypothesis.settings.register_profile("steady", deadline=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, unless a test asks for virtual time (see `tests.virtual`)."""
    return "asyncio"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Ids without addresses: every worker must find the same tests."""
    return f"{argname}-{type(val).__name__}" if " at 0x" in repr(val) else None
