"""The run folder: one run at a time, nobody else's files touched, and no resume of another run than the one begun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.faults import UsageError
from pipeline.storage.run_folder import LOCK, PLAN, WORKERS, RunFolder, RunIdentity, differences

ROOT = Path(__file__).parents[1]

JOB = {"model": "google/gemini-test", "prompt": "Read {{ text }}", "schema": "{}", "parameters": '{"temperature": 0}'}
A_PLAN = RunIdentity(
    job_name="a-job", job=JOB, target="job.py", survey={"rows": 3, "files": []}, limit=None, simulated=False
)


def prepared(output: Path) -> RunFolder:
    folder = RunFolder(output)
    folder.prepare()
    return folder


# One run at a time

HOLD = """
import sys
from pathlib import Path
from pipeline.storage.run_folder import RunFolder

with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(output: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        try:
            yield child
        finally:
            child.kill()


def test_p6_a_second_run_is_refused_and_told_the_pid_and_host_of_the_first(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "out")
    with holder(folder.output) as child:
        who = f"pid {child.pid} on {socket.gethostname()}"
        with pytest.raises(UsageError, match=f"another run works on {folder.output}: {who}"), folder.locked():
            pass
        assert folder.running() == who


def test_p6_kill_9_releases_the_lock(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "out")
    with holder(folder.output) as child:
        child.kill()
        child.wait()
        assert folder.running() is None
        with folder.locked():
            assert folder.running() == f"pid {os.getpid()} on {socket.gethostname()}"
    assert folder.running() is None


def test_p6_of_many_starts_at_the_same_moment_just_one_gets_the_folder(tmp_path: Path) -> None:
    for turn in range(20):
        assert sorted(_race(tmp_path / str(turn), starts=6)) == ["got it"] + ["told who"] * 5


def _race(output: Path, *, starts: int) -> list[str]:
    """How so many starts at once ended."""
    ended: list[str] = []
    at_once, all_tried = threading.Barrier(starts), threading.Barrier(starts)

    def start() -> None:
        at_once.wait()
        try:
            folder = prepared(output)
            with folder.locked():
                all_tried.wait()
                folder.sweep()
                ended.append("got it")
        except UsageError as refusal:
            all_tried.wait()
            ended.append("told who" if f": pid {os.getpid()} on " in str(refusal) else str(refusal))

    threads = [threading.Thread(target=start) for _ in range(starts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_nobody_works_on_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "nowhere").running() is None


# Whose files


def test_a_folder_is_made_with_its_parents_and_a_private_run_folder(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "a" / "b" / "out")
    assert folder.run.stat().st_mode & 0o777 == 0o700
    assert list(folder.run.iterdir()) == []
    folder.prepare()


def test_p5_an_output_that_cannot_be_written_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    for output in (in_the_way, in_the_way / "out", Path("/proc/nobody/out"), Path("/proc/self/out")):
        with pytest.raises(UsageError, match="cannot be written"):
            prepared(output)
    assert in_the_way.read_text() == "not a folder"


def test_p5_a_file_in_place_of_the_run_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "_run").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        prepared(tmp_path)


@pytest.mark.parametrize("stranger", ["notes.txt", "data.parquet", "part-000000.csv", ".git"])
def test_a_folder_with_other_files_is_refused(stranger: str, tmp_path: Path) -> None:
    (tmp_path / stranger).write_text("mine")
    with pytest.raises(UsageError, match=f"holds other files .{stranger}.: choose an empty one"):
        prepared(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [stranger]


def test_parts_without_their_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part-000000.parquet").write_text("precious")
    with pytest.raises(UsageError, match="without its run state"):
        prepared(tmp_path)


def test_clear_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "out")
    mine = [folder.output / name for name in ("notes.txt", "_other", "data.parquet")]
    theirs = [
        *(
            folder.output / name
            for name in ("part-000000.parquet", "part-000001.parquet", "_manifest.json", "_SUCCESS")
        ),
        *(folder.run / name for name in (PLAN, "journal.sqlite", "journal.sqlite-wal", "events.jsonl")),
    ]
    replies = folder.run / "replies"
    replies.mkdir()
    for path in (*mine, *theirs, replies / "part-000000.replies"):
        path.write_text("x")
    with folder.locked():
        folder.clear()
        left = [path for path in folder.output.rglob("*") if path.is_file()]
        assert sorted(left) == sorted([*mine, folder.run / LOCK, folder.run / WORKERS])
        assert folder.running() is not None


def test_sweep_removes_what_was_not_written_to_its_end(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "out")
    replies = folder.run / "replies"
    replies.mkdir()
    whole = [folder.output / "part-000000.parquet", folder.run / PLAN, replies / "part-000000.replies"]
    for path in whole:
        path.write_text("x")
        path.with_name(f".{path.name}.tmp").write_text("x")
    folder.sweep()
    assert sorted(path for path in folder.output.rglob("*") if path.is_file()) == sorted(whole)


def test_a_run_that_was_killed_before_its_first_part_can_be_started_again(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "out")
    (folder.output / ".part-000000.parquet.tmp").write_text("half")
    (folder.output / "._manifest.json.tmp").write_text("half")
    folder.prepare()


# The plan


def test_a_plan_is_read_as_it_was_written_and_is_private(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "out")
    assert folder.load() is None
    folder.save(A_PLAN)
    assert folder.load() == A_PLAN
    assert (folder.run / PLAN).stat().st_mode & 0o777 == 0o600
    folder.save(replace(A_PLAN, reparsing=True))
    assert folder.load() == replace(A_PLAN, reparsing=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'"text"', b"{}", b"\xff", b'{"job_name": "a-job"}'])
def test_a_plan_that_cannot_be_read_is_refused_with_the_remedy(content: bytes, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "out")
    (folder.run / PLAN).write_bytes(content)
    with pytest.raises(UsageError, match=r"is not a plan of this version .*: start over with --fresh"):
        folder.load()


def test_every_run_has_an_id_of_its_own() -> None:
    other = RunIdentity(job_name="a-job", job={}, target="", survey={}, limit=None, simulated=False)
    assert other.run_id != A_PLAN.run_id


# What makes it another run


def changed(**fields: str) -> RunIdentity:
    return replace(A_PLAN, job={**JOB, **fields})


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (changed(model="google/other"), ["model changed: 'google/gemini-test' -> 'google/other'"]),
        (changed(prompt="Write {{ text }}"), ["prompt changed: 'Read {{ text }}' -> 'Write {{ text }}'"]),
        (changed(tools="[]"), ["tools changed: '' -> '[]'"]),
        (replace(A_PLAN, job={}), [f"{name} changed: {value!r} -> ''" for name, value in JOB.items()]),
        (replace(A_PLAN, limit=10), ["limit changed: None -> 10"]),
        (replace(A_PLAN, simulated=True), ["it was answered by a real endpoint"]),
        (
            changed(model="m", schema="[]"),
            ["model changed: 'google/gemini-test' -> 'm'", "schema changed: '{}' -> '[]'"],
        ),
    ],
)
def test_p8_what_changed_is_told_field_by_field(now: RunIdentity, told: list[str]) -> None:
    assert differences(A_PLAN, now) == told


def test_p8_a_change_deep_in_a_long_text_is_shown_where_it_is() -> None:
    text = "All work and no play makes Jack a dull boy.\n" * 100
    (told,) = differences(changed(prompt=text), changed(prompt=text[:3000] + "BANG" + text[3000:]))
    assert "BANG" in told
    assert len(told) < 250


TEXTS = st.dictionaries(st.sampled_from("abcd"), st.text(max_size=100), max_size=4)


@given(TEXTS, TEXTS)
def test_p8_differences_name_just_the_fields_that_differ(before: dict[str, str], now: dict[str, str]) -> None:
    told = differences(replace(A_PLAN, job=before), replace(A_PLAN, job=now))
    differing = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    assert {text[0] for text in told} == differing
    assert len(told) == len(differing)


@pytest.mark.parametrize("value", [{"target": "elsewhere.py"}, {"run_id": "another"}, {"created": "later"}])
def test_what_shapes_no_answer_makes_no_difference(value: dict[str, Any]) -> None:
    assert differences(A_PLAN, replace(A_PLAN, **value)) == []
