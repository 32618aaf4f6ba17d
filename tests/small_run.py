"""A run of some rows against a server on loopback that answers each with its own text in capitals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import JOB, Done, Shell
from tests.servers import Answer, Call, Served, chat, served

ROWS = 20


@pytest.fixture(name="shell")
def shell_with_rows(tmp_path: Path) -> Shell:
    """A folder with the job and its input."""
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


def capitals(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt.upper()}))


@pytest.fixture(name="server")
def server_of_capitals() -> Iterator[Served]:
    with served(capitals) as server:
        yield server


def run(shell: Shell, server: Served, *more: str) -> Done:
    return shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet", "--json", *more)
