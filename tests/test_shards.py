"""A run in shards: one dataset, whoever works on it, in how many parts, and whatever happens to one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline.data import Part
from pipeline.execution.finish import Summary, finish
from pipeline.execution.run import Run
from pipeline.execution.shards import ShardStart, divided, parts_of
from pipeline.execution.start import open_run
from pipeline.storage.remote.lease import RENEW_S, TAKEOVER_S
from pipeline.storage.remote.shards import Patience, Shard
from tests.crash.small import RunPlace, Shape
from tests.memory_store import MemoryStore
from tests.test_remote_output import Cloud


class ShardedCloud(Cloud):
    """A bucket, and machines that each work on a shard of one run."""

    def __init__(self, folder: Path, shape: Shape = Shape()) -> None:  # noqa: B008 - frozen
        super().__init__(folder)
        self.place = RunPlace(folder / "machine", shape).prepare()
        self.said: list[str] = []
        self.while_waiting: Callable[[], None] = lambda: None

    def pause(self, seconds: float) -> None:
        self.clock.now += seconds
        self.while_waiting()

    def work(
        self,
        shard: Shard,
        *,
        machine: str = "",
        store: MemoryStore | None = None,
        opened: Callable[[Run], None] = lambda _: None,
        **changes: Any,
    ) -> Summary:
        """One start of a shard, to its end, on a machine with a state folder of its own."""
        place = self.machine(machine or f"machine-{shard.name}")
        stop_after = changes.pop("stop_after", None)
        settings = divided(place.settings(**changes), shard)
        start = ShardStart(shard, Patience(self.pause, self.said.append))
        objects = (store or self.store()).objects()
        with open_run(place.job(), settings, objects=objects, shard=start) as run:
            opened(run)
            self.parts: list[Part] = anyio.run(parts_of, run, place.connect(run.context.stop, stop_after))
            return finish([run])[0]

    def killed_shard(self, shard: Shard, store: MemoryStore, **changes: Any) -> bool:
        try:
            self.work(shard, store=store, **changes)
        except BaseException:
            if not store.dead:
                raise
        return store.dead

    def later(self) -> None:
        """All leases have run out."""
        self.clock.now += RENEW_S + TAKEOVER_S + 1


@pytest.fixture
def cloud(tmp_path: Path) -> ShardedCloud:
    return ShardedCloud(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_write_the_dataset_of_a_run_in_one_piece(cloud: ShardedCloud, count: int) -> None:
    """The rows of 3 chunks: with 7 shards, some have none. The last to end writes the manifest and the marker."""
    ended = [cloud.work(Shard(index, count)) for index in range(count)]
    assert sum(summary.requests for summary in ended) == cloud.place.shape.rows
    assert {summary.status for summary in ended} <= {"done", "complete"}
    assert ended[-1].status == "complete"
    assert ended[-1].rows == cloud.place.shape.rows
    cloud.require_whole()
