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
