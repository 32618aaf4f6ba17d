"""A row that was answered is gone: nothing of it waits for the collector of cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from pipeline.data import Ask, Outcome, Reply
from pipeline.faults import Unavailable
from pipeline.job.job import Job
from pipeline.policy import RowCalls, logged
from pipeline.policy.repair import repairing
from tests import virtual
from tests.test_row_calls import MemoryTurns, ScriptedModel, Tools, entry, reply

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def outcome(ordinal: int, said: Reply) -> Outcome:
    return Job(name="j", model="m", user="{{ t }}").outcome(ordinal, said)


def asking(kind: str) -> Ask:
    """The ask of a row that takes this way to its end."""
    match kind:
        case "one call":
            return logged(ScriptedModel([reply("done")]).ask)
        case "tools":
            return Tools().ask_for(ScriptedModel([reply(None, "count"), reply(None, "count"), reply("done")]))
        case "failed after an answer":
            return Tools().ask_for(ScriptedModel([reply(None, "count"), Unavailable("gone")]))
    return repairing(logged(ScriptedModel([reply("do", finish="length"), reply("done")]).ask), outcome, 1)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("kind", ["one call", "tools", "failed after an answer", "repaired"])
async def test_nothing_of_a_row_is_left_to_the_collector(kind: str) -> None:
    """Bodies of replies would stay in memory until tens of thousands of other objects were made."""
    before = {id(one) for one in gc.get_objects() if isinstance(one, RowCalls)}
    assert await entry(asking(kind), RowCalls(3, MemoryTurns())) is not None
    left = [one for one in gc.get_objects() if isinstance(one, RowCalls) and id(one) not in before]
    assert left == []
