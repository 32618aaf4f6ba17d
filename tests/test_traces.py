"""What a run does to the world beside its output: nothing is fetched but answers, nothing is left open."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.commands import JOB, Shell, ended
from tests.servers import Answer, Call, Says, Silence, chat, error, served

PICTURES = """
from pipeline import Job, image

job = Job(
    name="a_job",
    model="google/gemini-test",
    input="rows.jsonl",
    user=["What is it?", image("picture")],
    media_root=".",
    keep=["id"],
    max_failed=0.9,
)
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, {"OPENAI_API_KEY": "k"})


def test_s3_media_are_never_fetched_from_here_and_plain_http_fails_its_row(shell: Shell) -> None:
    """A row may name this machine, its metadata server or a file: none of them hears of it."""
    with served(lambda _: error(404)) as inside, served(lambda _: chat("a picture")) as server:
        place = inside.server.origin.partition("://")[2]
        pictures = [
            f"https://{place}/computeMetadata/v1/token",
            f"http://{place}/computeMetadata/v1/token",
            "http://169.254.169.254/computeMetadata/v1/",
            "file:///etc/passwd",
            "gs://bucket/picture.png",
        ]
        rows = [{"id": number, "picture": picture} for number, picture in enumerate(pictures)]
        shell.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        shell.write("job.py", PICTURES)
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet", "--json")
        assert inside.calls == []
        asked = [call.json()["messages"][-1]["content"][-1]["image_url"]["url"] for call in server.calls]
    assert done.json.items() >= {"ok": 2, "failed": 3}.items()
    assert sorted(asked) == sorted([pictures[0], pictures[4]])
    assert [row["error"]["type"] for row in shell.output() if row["error"]] == ["InvalidRow"] * 3


def test_s6_while_it_works_a_runs_own_folder_is_for_its_owner_only_whatever_the_umask(shell: Shell) -> None:
    shell.write("job.py", JOB)
    shell.rows(1200, heavy=True)  # two chunks, of which one is sealed
    own = shell.folder / "out/a_job/_run"
    expected = {"journal.sqlite", "journal.sqlite-wal", "plan.json", "lock", "state.json", "events.jsonl", "replies"}
    last = chat(json.dumps({"answer": "x"}))
    prefix = ("sh", "-c", 'umask 0; exec "$@"', "sh")
    run = ("run", "job.py", "--no-adaptive")
    with (
        served(lambda call: Silence() if call.prompt == "Say text 1100" else last) as server,
        shell.started(*run, "--base-url", server.base_url, prefix=prefix) as child,
    ):
        while not (expected <= {path.name for path in own.glob("*")} and list(own.glob("replies/part-*"))):
            assert child.poll() is None
            time.sleep(0.01)
        modes = {path.name: path.stat().st_mode for path in [own, *own.rglob("*")]}
    assert {name for name, mode in modes.items() if mode & 0o077} == set()


def answer(call: Call) -> Says:
    """Everything that can be left open: whole answers, errors, streams that break off, silence."""
    kinds: list[Says] = [
        chat(json.dumps({"answer": "x"})),
        error(500),
        Answer(b"data: {", headers={"Content-Type": "text/event-stream"}),
        Silence(),
        Answer(b"<html>"),
    ]
    return kinds[int(call.prompt.rpartition(" ")[2]) % len(kinds)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_run_leaves_no_connection_file_or_task_behind(stream: bool, shell: Shell) -> None:  # noqa: FBT001 - a parameter of the test
    """In Python's development mode each of them would say so."""
    shell = Shell(shell.folder, {**shell.variables, "PYTHONDEVMODE": "1"})
    shell.write(
        "job.py", JOB.replace('"a_job",', f'"a_job", stream={stream}, attempts=1, timeout_s=1, max_failed=0.9,')
    )
    shell.rows(20)
    flags = ("--no-adaptive", "-c", "8", "--quiet", "--json")
    with served(answer) as server:
        with shell.started("run", "job.py", "--base-url", server.base_url, *flags) as child:
            done = ended(child)
        assert len(server.calls) == 20
    assert done.json["failed"] == 16  # plain JSON is read for a streamed call, too
    told = [line for line in done.err.splitlines() if "Warning" in line or "was destroyed" in line or "never" in line]
    assert told == []
