"""Too few open files for the calls in flight: raised where that may be, or refused before the first call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import JOB, Done, Shell, ended
from tests.servers import Answer, Call, Held, Served, chat, served

ROWS = 150


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt}))


def limited(shell: Shell, server: Served, limit: str, *flags: str) -> Done:
    """A run whose shell was told `ulimit LIMIT`."""
    prefix = ("sh", "-c", f'ulimit {limit}; exec "$@"', "sh")
    run = ("run", "job.py", "--base-url", server.base_url, "--no-adaptive", "--quiet", "--json", *flags)
    with shell.started(*run, prefix=prefix) as child:
        if server.server.script is not answer:
            server.arrived(ROWS)
            server.release()
        return ended(child)


@pytest.mark.parametrize("flags", [(), ("-c", "1")], ids=["64 at once", "1 at once"])
def test_p10_a_limit_that_cannot_be_raised_is_told_with_both_numbers_before_the_first_call(
    flags: tuple[str, ...], shell: Shell
) -> None:
    with served(answer) as server:
        done = limited(shell, server, "-n 64", *flags)
        assert server.calls == []
    assert (done.code, done.out) == (2, "")
    assert f"need {65 if flags else 128} open files, but the limit is 64" in done.err
    assert not (shell.folder / "out").exists()


def test_p10_a_soft_limit_is_raised_and_every_call_is_in_flight_at_once(shell: Shell) -> None:
    with served(lambda call: Held(answer(call))) as server:
        done = limited(shell, server, "-Sn 64", "-c", str(ROWS))
    assert done.json.items() >= {"ok": ROWS, "requests": ROWS, "retries": 0}.items()


def test_p10_so_it_is_in_each_of_several_processes(shell: Shell) -> None:
    rows = 1100  # two chunks
    shell.rows(rows, "many.jsonl")
    with served(lambda call: Held(answer(call))) as server:
        done = limited(shell, server, "-Sn 64", "-i", "many.jsonl", "-c", str(ROWS), "--processes", "2")
    assert done.json.items() >= {"ok": rows, "requests": rows, "retries": 0}.items()


def test_p10_every_endpoint_counts(shell: Shell) -> None:
    """Each keeps connections of its own, also while the others are at work."""
    with served(answer) as server:
        second = ("--base-url", server.base_url)
        assert "120 open files" not in limited(shell, server, "-n 119", "-c", "28").err
        done = limited(shell, server, "-n 119", "-c", "28", *second, "--output", "out/other")
    assert done.code == 2
    assert "28 calls in flight to each of 2 endpoints need 120 open files, but the limit is 119" in done.err
