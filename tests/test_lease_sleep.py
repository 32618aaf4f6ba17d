"""A run whose process is stopped past its lease, and wakes after another machine has taken over its output."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.commands import Shell, ended
from tests.test_remote_runs import ROWS, Cloud, cloud_of

AHEAD_S = 100.0
"""How far the clocks of the store and of the sleeper are moved: more than the time of a lease."""

MOVED_CLOCK = f"""
import pathlib
import time

real, asleep = time.clock_gettime, pathlib.Path(__file__).with_name("asleep")
time.clock_gettime = lambda clock: real(clock) + ({AHEAD_S} if asleep.exists() else 0.0)
"""
"""A `sitecustomize` for the sleeper: the clock that goes on while a machine sleeps."""


def test_o2_a_process_that_is_stopped_past_its_lease_changes_nothing_when_it_wakes(tmp_path: Path) -> None:
    with cloud_of(tmp_path) as cloud:
        cloud.shell.rows(ROWS, heavy=True)
        cloud.control(latency=0.02)
        clock = tmp_path / "clock"
        clock.mkdir()
        (clock / "sitecustomize.py").write_text(MOVED_CLOCK)
        path = f"{clock}{os.pathsep}{cloud.shell.environment['PYTHONPATH']}"
        sleeper = Shell(tmp_path, {**cloud.shell.variables, "PYTHONPATH": path})
        with sleeper.started(*cloud.arguments("--drain-timeout", "0")) as child:
            while cloud.stats()["requests"] < ROWS // 3:
                assert child.poll() is None, ended(child)
                time.sleep(0.02)
            cloud.control(latency=2.0)
            until_still(cloud)
            os.kill(child.pid, signal.SIGSTOP)
            (clock / "asleep").touch()
            cloud.control(latency=0.0, bucket_ahead_s=AHEAD_S)
            another = Shell(tmp_path, {**cloud.shell.variables, "PIPELINE_STATE_DIR": str(tmp_path / "another")})
            with another.started(*cloud.arguments()) as second:
                assert ended(second).json["status"] == "complete"
            before = cloud.objects()
            os.kill(child.pid, signal.SIGCONT)
            done = ended(child)
        assert done.code == 1, done
        assert "another run has taken over gs://bucket/nightly/out (by pid" in done.err + done.out
        assert cloud.objects() == before
        assert sum(key.startswith("nightly/out/data/") for key in before) == 2


def until_still(cloud: Cloud) -> None:
    """Returns when no request to the bucket came for a while: none may be half sent when its process is stopped."""
    seen: list[int] = []
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        seen.append(sum(cloud.stats()["bucket_requests"].values()))
        time.sleep(0.02)
