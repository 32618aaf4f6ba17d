"""The same bytes in the same order are the same run, wherever they lie; a longer look at them goes on with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.faults import UsageError
from pipeline.storage.run_folder import RunFolder
from tests.commands import CHUNK, JOB, Done, Shell
from tests.servers import Answer, Call, Served, chat, error, served

ROWS = 20


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt.removeprefix("Say ").upper()}))


def answering(calls: int) -> Callable[[Call], Answer]:
    """Answers so many calls, and then nobody any more."""
    left = iter(range(calls))
    return lambda call: answer(call) if next(left, None) is not None else error(403)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    (shell.folder / "in/day=1").mkdir(parents=True)
    shell.rows(ROWS, "in/day=1/a.jsonl")
    shell.rows(ROWS // 2, "in/day=1/b.jsonl")
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def run(shell: Shell, server: Served, *more: str) -> Done:
    common = ("--base-url", server.base_url, "--no-adaptive", "-c", "16", "--quiet", "--json", "-o", "out/it")
    return shell.pipeline("run", "job.py", *common, *more)


HALF = 12


def stop_half_way(shell: Shell, where: str) -> None:
    """A run over the input that ended when this many rows were answered."""
    with served(answering(HALF)) as server:
        # One after the other: of several, a refused one might be known to have left before one that was answered.
        assert run(shell, server, "-i", where, "-c", "1").code == 7


def require_end(shell: Shell, server: Served, done: Done) -> None:
    assert (done.code, done.json["ok"]) == (0, ROWS + ROWS // 2), done
    assert len(server.calls) == ROWS + ROWS // 2 - HALF
    assert [row["id"] for row in shell.output("out/it")] == [*range(ROWS), *range(ROWS // 2)]


MOVES = {
    "another absolute path": ("mv in elsewhere", "elsewhere"),
    "a copy with other times": ("cp -r in mount && touch -d 2020-01-01 in/day=1/*", "mount"),
    "the old one is still there, and another": ("cp -r in mount && cat in/day=1/b.jsonl > in/day=1/c.jsonl", "mount"),
    "files renamed in the same order": ("cd in/day=1 && mv a.jsonl x1.jsonl && mv b.jsonl x2.jsonl", "in"),
    "a glob in place of the folder": ("true", "in/*/*.jsonl"),
    "files in the place of the folder": ("true", "in/day=1/a.jsonl in/day=1/b.jsonl"),
    "touched": ("touch -d 2020-01-01 in/day=1/*", "in"),
}


@pytest.mark.parametrize("move", MOVES)
def test_i9_the_same_bytes_elsewhere_are_the_same_run(shell: Shell, server: Served, move: str) -> None:
    command, where = MOVES[move]
    stop_half_way(shell, str(shell.folder / "in"))
    assert os.system(f"cd {shell.folder} && {command}") == 0  # noqa: S605 - commands of ours
    inputs = [flag for entry in where.split() for flag in ("-i", entry)]
    require_end(shell, server, run(shell, server, *inputs))
    # What was found elsewhere is where the next start looks.
    assert RunFolder(shell.folder / "out/it").load() is not None
    assert run(shell, server, *inputs).json["requests"] == 0


CHANGES = {
    "another order": ("cd in/day=1 && mv a.jsonl c.jsonl", "a.jsonl is gone"),
    "other files changed places": (
        "cd in/day=1 && mv a.jsonl t && mv b.jsonl a.jsonl && mv t b.jsonl",
        "bytes and now",
    ),
    "one byte": ("cd in && sed -i '1s/text 0/text 9/' day=1/a.jsonl", "different content"),
    "moved, and one byte": (
        "mv in i2 && mkdir in && mv i2/* in && sed -i '1s/text 0/text 9/' in/day=1/a.jsonl",
        "content",
    ),
    "another day": ("mv in/day=1 in/day=2", "give day=2, and gave day=1 before"),
    "a file more": ("cp in/day=1/a.jsonl in/day=1/c.jsonl", "c.jsonl is new in the input"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_i9_p7_other_bytes_or_another_order_are_another_run(shell: Shell, server: Served, change: str) -> None:
    command, told = CHANGES[change]
    stop_half_way(shell, "in")
    assert os.system(f"cd {shell.folder} && {command}") == 0  # noqa: S605 - commands of ours
    done = run(shell, server, "-i", "in")
    assert done.code == 2
    assert told in done.err
    assert not server.calls


def test_i9_a_moved_project_goes_on(shell: Shell, server: Served, tmp_path: Path) -> None:
    stop_half_way(shell, "in")
    there = tmp_path / "checkout"
    there.mkdir()
    for name in ("in", "out", "job.py"):
        shutil.move(shell.folder / name, there / name)
    require_end(Shell(there, shell.variables), server, run(Shell(there, shell.variables), server, "-i", "in"))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_limited_run_goes_on_to_more_and_to_all_rows_without_asking_again(
    shell: Shell, server: Served, processes: str
) -> None:
    for limit, rows in ((("--limit", "7"), 7), (("--limit", "13"), 13), ((), ROWS + ROWS // 2)):
        done = run(shell, server, "-i", "in", *limit, "--processes", processes)
        assert done.json.items() >= {"status": "complete", "rows": rows, "ok": rows}.items(), done
        assert (len(server.calls), len(shell.output("out/it"))) == (rows, rows)
    assert "limit changed: None -> 7" in run(shell, server, "-i", "in", "--limit", "7").err


def test_a_limited_run_goes_on_where_chunks_and_columns_become_others(shell: Shell, server: Served) -> None:
    lines = [{"id": n, "text": f"text {n}", "rest": "x" * 17_000} for n in range(2 * CHUNK)]
    lines[-1] |= {"id": 0.5}  # what was an integer column is one of doubles
    shell.write("rows.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert run(shell, server, "--limit", str(CHUNK + 10)).json["ok"] == CHUNK + 10
    assert run(shell, server).json.items() >= {"ok": 2 * CHUNK, "requests": CHUNK - 10}.items()
    rows = shell.output("out/it")
    assert [row["id"] for row in rows] == [*map(float, range(2 * CHUNK - 1)), 0.5]
    assert [row["parsed"]["answer"] for row in rows] == [f"TEXT {n}" for n in range(2 * CHUNK)]


def test_a_limited_run_without_its_replies_is_not_extended(shell: Shell, server: Served) -> None:
    run(shell, server, "-i", "in", "--limit", "7", "--no-keep-replies")
    done = run(shell, server, "-i", "in", "--no-keep-replies")
    assert (done.code, "did not keep its replies" in done.err) == (2, True)
    assert len(shell.output("out/it")) == 7


@pytest.mark.parametrize("name", ["lost+found", ".DS_Store", ".gitkeep", "._part-000000.parquet", ".Trashes"])
def test_what_a_fresh_volume_holds_is_no_obstacle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    RunFolder(tmp_path).prepare()


def test_an_output_that_is_a_broken_link_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="out is a link to nothing: choose another --output"):
        RunFolder(tmp_path / "out").prepare()
