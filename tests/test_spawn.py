"""Worker processes are forked or started so that nothing of one reaches its parent but what is meant to."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from typing import Any

import anyio
import pytest

from pipeline.execution.processes.messages import Channel

SCRIPT = """
import os, resource, signal, sys
from pipeline.execution.processes.spawn import WorkerPool

def main(channel, lifeline):
    {does}

def here():
    return sorted(os.listdir("/proc/self/fd"))

def children():
    return open(f"/proc/self/task/{{os.getpid()}}/children").read().split()

{before}
open_before = here()
workers = WorkerPool((), 3)
workers.fork(main)
{after}
"""
ENDS = "started = [workers.start() for _ in range(3)]\nprint([one.process.wait() for one in started])"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def forking(does: str, after: str = ENDS, before: str = "") -> subprocess.CompletedProcess[str]:
    """A program of its own that forks three workers: this one has threads."""
    script = SCRIPT.format(does=does, after=after, before=before)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


@pytest.mark.parametrize(
    ("does", "codes"),
    [
        ("return 7", [7, 7, 7]),
        ("sys.exit(3)", [3, 3, 3]),
        ("raise ValueError('a bug')", [1, 1, 1]),
        ("raise KeyboardInterrupt", [1, 1, 1]),
        ("sys.stderr.close(); raise ValueError", [1, 1, 1]),
        ("os.close(2); raise ValueError", [1, 1, 1]),
        ("os.kill(os.getpid(), signal.SIGKILL)", [-9, -9, -9]),
    ],
)
def test_however_a_worker_ends_its_parents_program_is_not_gone_on_with(does: str, codes: list[int]) -> None:
    assert forking(does).stdout == f"{codes}\n"


def test_what_a_worker_prints_goes_to_standard_error_whole() -> None:
    done = forking("print('said'); return 0")
    assert done.stdout == "[0, 0, 0]\n"
    assert done.stderr.splitlines() == ["said"] * 3


def test_the_traceback_of_a_bug_is_seen() -> None:
    assert forking("raise ValueError('a bug')").stderr.count("ValueError: a bug") == 3


def test_a_worker_ends_with_its_own_lifeline_whatever_the_others_hold() -> None:
    after = """
for _ in range(3):
    one = workers.start()
    os.close(one.lifeline)
    print(one.process.wait())
"""
    assert forking("os.read(lifeline, 1); return 5", after).stdout == "5\n5\n5\n"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_who_is_not_needed_ends_and_leaves_no_process_and_no_descriptor(count: int) -> None:
    after = f"""
workers.reduce({count})
print(len(children()), len(here()) - len(open_before), workers.count)
workers.reduce(0)
print(children(), here() == open_before)
"""
    done = forking("os.read(lifeline, 1); return 5", after)
    assert done.stdout.splitlines() == [f"{count} {2 * count} {count}", "[] True"]


def test_what_cannot_be_forked_is_left_for_later() -> None:
    before = (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(here()) + 5, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    )
    after = "n = len(children())\nworkers.reduce(0)\nprint(n, children(), here() == open_before)"
    done = forking("os.read(lifeline, 1); return 5", after, before)
    assert done.stdout == "2 [] True\n", done.stderr


def test_where_ends_of_children_are_ignored_they_are_waited_for_all_the_same() -> None:
    before = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    done = forking("os.read(lifeline, 1); return 5", "workers.reduce(0)\nprint(children())", before)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.anyio
async def test_a_shared_descriptor_comes_before_any_message_and_is_not_handed_on() -> None:
    one, other = socket.socketpair()
    ours, theirs = Channel(one), Channel(other)
    reading, writing = os.pipe()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ours.share, writing)
        tasks.start_soon(ours.send, "a message")
        tasks.start_soon(ours.send, "another")
        shared = await theirs.take()
        assert [await theirs.receive(), await theirs.receive()] == ["a message", "another"]
    assert shared is not None
    assert not os.get_inheritable(shared)
    os.close(writing)
    os.write(shared, b"x")
    assert os.read(reading, 1) == b"x"
    for descriptor in (reading, shared):
        os.close(descriptor)
    await ours.close()
    assert await theirs.receive() is None
    await theirs.close()


@pytest.mark.anyio
async def test_of_a_parent_that_is_gone_there_is_no_descriptor() -> None:
    one, other = socket.socketpair()
    channel = Channel(other)
    one.close()
    assert await channel.take() is None
    await channel.close()


@pytest.mark.anyio
async def test_what_arrives_at_the_moment_of_a_cancellation_is_not_an_error_of_the_loop() -> None:
    told: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    (one, other), (bell, rope) = socket.socketpair(), socket.socketpair()
    ours, theirs = Channel(one), Channel(other)
    try:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                loop.add_reader(bell, scope.cancel)
                tasks.start_soon(_ring, rope, one)
                await theirs.receive()
        assert scope.cancelled_caught
        assert await theirs.receive() == "a message"
    finally:
        loop.remove_reader(bell)
        for end in (bell, rope):
            end.close()
        await ours.close()
        await theirs.close()
    assert not told


async def _ring(rope: socket.socket, end: socket.socket) -> None:
    """Has both arrive before the loop looks: first what cancels the receiver, then what it waits for."""
    await anyio.wait_all_tasks_blocked()
    message = pickle.dumps("a message")
    rope.send(b"x")
    end.send(len(message).to_bytes(4, "big") + message)
