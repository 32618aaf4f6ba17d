"""A run to S3 against moto, which is not ours. Skipped where it is not installed: `pip install 'moto[s3,server]'`."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.commands import JOB, Shell, ended

pytestmark = pytest.mark.skipif(
    find_spec("moto") is None or find_spec("flask") is None, reason="moto with its server is not installed"
)

PLACE = "s3://bucket/out"


@contextmanager
def bucket() -> Iterator[str]:
    """The URL of a server with the bucket `bucket`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while not _created(port):
                assert server.poll() is None
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def _created(port: int) -> bool:
    """Whether the server has started, and then made the bucket."""
    connection = HTTPConnection("127.0.0.1", port)
    try:
        connection.request("PUT", "/bucket")
        return connection.getresponse().status == 200
    except ConnectionError:
        return False
    finally:
        connection.close()


def test_a_run_to_s3_goes_on_on_another_machine_and_is_read_by_its_address(tmp_path: Path) -> None:
    with bucket() as url:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        shells = [
            Shell(tmp_path, {**keys, "AWS_ENDPOINT_URL": url, "PIPELINE_STATE_DIR": str(tmp_path / machine)})
            for machine in ("one", "two")
        ]
        shells[0].write("job.py", JOB)
        shells[0].rows(20)
        with shells[0].started("run", "job.py", "--emulate", "--limit", "15", "-o", PLACE, "--json") as first:
            assert ended(first).json["ok"] == 15
        with shells[1].started("run", "job.py", "--emulate", "-o", PLACE, "--json") as second:
            assert ended(second).json.items() >= {"status": "complete", "ok": 20, "requests": 5}.items()
        found = shells[0].pipeline("export", PLACE, "--to", f"{PLACE}.csv", "--json")
        assert found.json["rows"] == 20
        assert "exists" in shells[0].pipeline("export", PLACE, "--to", f"{PLACE}.csv").err
        assert shells[0].pipeline("status", PLACE, "--json").json["status"] == "complete"
        shells[0].write("changed.py", JOB.replace("answer: str", "answer: str\n    more: str | None = None"))
        assert shells[0].pipeline("reparse", PLACE, "--job", "changed.py", "--json").json["status"] == "complete"
