"""A run over a Ray cluster of three nodes on this machine, of which workers, a node and the driver are killed.

`python -m tests.crash.ray_soak` prints what each trial cost. Needs the extra `ray`, and about five minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import JOB, ROOT

ROWS = 2000
_BEGUN = ROWS // 5
_DEADLINE_S = 240.0


@dataclass(frozen=True)
class Place:
    """An emulator with a bucket, a folder with a job and its rows, and what commands are started with."""

    folder: Path
    emulator: dict[str, Any]
    environment: dict[str, str]

    def start(self, output: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline", "run", "job.py", "-o", f"gs://ray/{output}", "--json", "-q"]
        command += ["--base-url", self.emulator["base_url"], "--credentials", self.emulator["credentials_file"], *more]
        with (self.folder / f"{output}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def ended(self, running: subprocess.Popen[bytes]) -> dict[str, Any]:
        out, _ = running.communicate(timeout=_DEADLINE_S)
        return {"code": running.returncode, **(json.loads(out) if out else {})}

    def requests(self) -> int:
        with urllib.request.urlopen(self.emulator["stats_url"]) as answer:  # noqa: S310 - loopback
            return int(json.load(answer)["requests"])

    def dataset(self, output: str) -> list[str]:
        """The ids of the rows of a dataset, in order."""
        path = self.folder / f"{output}.jsonl"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pipeline", "export", f"gs://ray/{output}", "--to", str(path)]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True, capture_output=True)
        return [json.loads(line)["id"] for line in path.read_text().splitlines()]


@contextmanager
def place() -> Iterator[Place]:
    """A place for the block."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.py").write_text(JOB)
        lines = (json.dumps({"id": number, "text": f"word {number}"}) + "\n" for number in range(ROWS))
        (folder / "rows.jsonl").write_text("".join(lines))
        command = [sys.executable, "-m", "pipeline", "emulate", "--latency", "0.2", "--bucket", "ray", "--json"]
        emulator = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        try:
            assert emulator.stdout is not None
            address = json.loads(emulator.stdout.readline())
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "GOOGLE_APPLICATION_CREDENTIALS": address["credentials_file"],
                "STORAGE_EMULATOR_HOST": address["origin"],
                "PIPELINE_STATE_DIR": str(folder / "state"),
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
            }
            yield Place(folder, address, environment)
        finally:
            emulator.terminate()
            emulator.wait()


def until(true: Callable[[], bool]) -> None:
    """Waits until something is true."""
    end = time.monotonic() + _DEADLINE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def trial(here: Place, name: str, address: str, kill: Callable[[subprocess.Popen[bytes]], None]) -> None:
    """A run of which something is killed after a fifth, and that is started again if that ended it; prints its cost."""
    before = here.requests()
    on_ray = ("--engine", "ray", "--ray-address", address, "--processes", "3")
    running = here.start(name, *on_ray)
    until(lambda: here.requests() - before > _BEGUN)
    kill(running)
    summary = here.ended(running)
    if summary["code"] != 0:
        summary = here.ended(here.start(name, *on_ray))
    extra = here.requests() - before - ROWS
    same = here.dataset(name) == here.dataset("plain")
    print(f"{name}: {summary.get('status')}, {summary.get('rows')} rows, the same rows: {same}, {extra} requests more")


def worker_of(node: Any) -> int:
    """The process of a task on a node."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = (int(one) for one in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split())
    tasks = [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::work")]
    return tasks[0]


def main() -> None:
    """All trials."""
    with place() as here:
        os.environ.update(here.environment)
        from ray.cluster_utils import Cluster

        print(f"plain: {here.ended(here.start('plain'))['status']}")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        try:
            trial(here, "untouched", cluster.address, lambda _: None)
            trial(here, "worker", cluster.address, lambda _: os.kill(worker_of(nodes[0]), signal.SIGKILL))
            trial(here, "driver", cluster.address, lambda driver: driver.kill())
            trial(here, "node", cluster.address, lambda _: cluster.remove_node(nodes[0], allow_graceful=False))
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
