"""What every test may use."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, unless a test asks for virtual time (see `tests.virtual`)."""
    return "asyncio"
