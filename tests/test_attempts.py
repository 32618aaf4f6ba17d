"""How often a row is tried: as its job says and never more often, or as many rows fail around it."""

from __future__ import annotations

from collections import Counter
from itertools import count

import anyio
import pytest

from pipeline.data import Reply, Request
from pipeline.faults import Unavailable
from tests import virtual
from tests.test_composition import Setup, SlowEndpoint, bounds, completion, job

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

ROWS = 300


class Rainy(SlowEndpoint):
    """Fails two calls of five, and whatever row 7 asks."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: Counter[int] = Counter()
        self._calls = count()

    async def ask(self, request: Request) -> Reply:
        self.tries[request.ordinal] += 1
        await anyio.sleep(1.0)
        if next(self._calls) % 5 < 2 or request.ordinal == 7:
            raise Unavailable("503", http_status=503)
        return completion("fine")


async def asked(attempts: int | None) -> tuple[Rainy, int]:
    """The endpoint, and how many rows have failed."""
    endpoint, failed = Rainy(), 0
    setup = Setup(job(attempts=attempts), bounds(concurrency=8), endpoint)

    async def row(ordinal: int) -> None:
        nonlocal failed
        try:
            await setup.answer(ordinal)
        except Unavailable:
            failed += 1

    async with anyio.create_task_group() as rows:
        for ordinal in range(ROWS):
            rows.start_soon(row, ordinal)
    return endpoint, failed


@pytest.mark.parametrize("attempts", [1, 2, 3, 8])
async def test_h11_no_row_is_tried_more_often_than_its_job_says_however_many_fail(attempts: int) -> None:
    endpoint, failed = await asked(attempts)
    assert max(endpoint.tries.values()) == attempts
    assert failed >= 1


async def test_h3_a_job_that_does_not_say_loses_no_row_to_two_failures_of_five() -> None:
    endpoint, failed = await asked(None)
    assert failed == 1
    assert 5 < endpoint.tries[7] <= 20
