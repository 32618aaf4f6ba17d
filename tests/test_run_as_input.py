"""The output of a run is an input: its ok rows if it is complete, with its own columns under other names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import PARTS
from pipeline.faults import UsageError
from pipeline.job.columns import OURS
from pipeline.job.job import Job
from pipeline.source import Source, Survey, found_again, survey
from tests.commands import JOB, Shell
from tests.test_cli import error_of

ROWS = 12
AFTER = """
from pipeline import Job

job = Job(name="after", model="google/gemini-test", input="out/first", user="Again {{ parsed.answer }}")
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A complete run in `out/first`, of which every third row has failed."""
    shell = Shell(tmp_path, {})
    lines = [{"id": n, "text": f"text {n}" if n % 3 else None} for n in range(ROWS)]
    shell.write("rows.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    shell.write("job.py", JOB.replace("    keep=", "    max_failed=0.9,\n    keep="))
    shell.write("after.py", AFTER)
    assert shell.pipeline("run", "job.py", "--emulate", "-o", "out/first", "-q").code == 0
    return shell


def ran(shell: Shell, *more: str, output: str = "out/after") -> list[dict[str, Any]]:
    """The rows of a run over the first run's output."""
    done = shell.pipeline("run", "after.py", "--emulate", "-o", output, "-q", *more)
    assert done.code in (0, 3), done.err
    return shell.output(output)


OK = [n for n in range(ROWS) if n % 3]


@pytest.mark.parametrize("named", ["out/first", "out/first/data", "out/first/data/*.parquet", "out"])
def test_the_ok_rows_of_a_run_are_read_however_it_is_named(named: str, shell: Shell) -> None:
    rows = ran(shell, "-i", named, output="after")
    first = {row["id"]: row for row in shell.output("out/first")}
    assert [row["id"] for row in rows] == OK
    assert [row["input_parsed"] for row in rows] == [first[number]["parsed"] for number in OK]
    assert [row["row"] for row in rows] == OK  # the first run's, which has no key
    assert {row["status"] for row in rows} == {"ok"}


def test_the_rows_that_are_not_read_are_counted_in_a_note(shell: Shell) -> None:
    """`run` and `plan` say so."""
    note = f"note: {ROWS - len(OK)} failed rows of an earlier run are not read (--input-rows all reads them)"
    planned = shell.pipeline("plan", "after.py", "--rows", "0")
    assert note in planned.err
    assert note in shell.pipeline("run", "after.py", "--emulate", "-q").err


def test_all_rows_of_a_run_are_read_where_that_is_asked_for(shell: Shell) -> None:
    """By an option, or by the job; a failed row has nothing parsed, and fails again."""
    rows = ran(shell, "--input-rows", "all", "--no-fail-fast")
    assert [(row["id"], row["status"]) for row in rows] == [(n, "ok" if n % 3 else "failed") for n in range(ROWS)]
    shell.write("after.py", AFTER.replace("    name=", "name=").replace('name="after"', 'name="a", input_rows="all"'))
    assert shell.pipeline("plan", "after.py", "--json").json["rows"] == ROWS
    assert shell.pipeline("plan", "after.py", "--input-rows", "ok", "--json").json["rows"] == len(OK)


@pytest.mark.parametrize("named", ["out/first", "out/first/data", "out/first/data/*.parquet", "copied"])
def test_a_run_that_is_not_complete_is_refused_unless_that_is_allowed(named: str, shell: Shell) -> None:
    """Also a copy without the files of the run."""
    (shell.folder / "out/first/_SUCCESS").unlink()
    shutil.copytree(shell.folder / "out/first", shell.folder / "copied", ignore=shutil.ignore_patterns("_run"))
    for command in ("plan", "run"):
        told = error_of(shell.pipeline(command, "after.py", "-i", named))
        assert "is the output of a run that is not complete (it has no _SUCCESS)" in told
        assert "--allow-partial" in told
    assert not (shell.folder / "out/after").exists()
    assert [row["id"] for row in ran(shell, "-i", named, "--allow-partial")] == OK


@pytest.mark.parametrize("named", ["out/first", "out/first/data", "out/first/data/part-000000.parquet", "out"])
@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_a_run_is_not_written_over_its_own_input(named: str, fresh: tuple[str, ...], shell: Shell) -> None:
    """With --fresh the rows that it was to read were removed before it could read them, paid answers and all."""
    before = {path: path.read_bytes() for path in (shell.folder / "out/first").rglob("*.parquet")}
    refused = shell.pipeline("run", "after.py", "--input", named, "--output", "out/first", "--emulate", *fresh)
    assert refused.code == 2
    assert "is in the output out/first, which would be written over: choose another --output" in error_of(refused)
    assert {path: path.read_bytes() for path in (shell.folder / "out/first").rglob("*.parquet")} == before


def test_a_run_over_a_run_resumes_and_says_when_other_rows_would_be_read(shell: Shell) -> None:
    ran(shell, "--limit", "3")
    assert [row["id"] for row in ran(shell)] == OK
    refused = shell.pipeline("run", "after.py", "--emulate", "-o", "out/after", "--input-rows", "all")
    assert (refused.code, "changed: ok -> all (--input-rows ok)" in refused.err) == (2, True)
    assert len(shell.pipeline("show", "out/after", "-n", "20", "--json").out.splitlines()) == len(OK)


def test_a_plan_says_so_too_when_other_rows_would_be_read(shell: Shell) -> None:
    ran(shell)
    same = shell.pipeline("plan", "after.py", "-o", "out/after", "--json").json
    other = shell.pipeline("plan", "after.py", "-o", "out/after", "--input-rows", "all", "--json").json
    assert (same["rows_done"], "different run" in " ".join(same["notes"])) == (len(OK), False)
    assert "out/after holds a different run (the rows read of" in " ".join(other["notes"])


def test_requests_are_shown_after_the_run_that_was_read_has_moved(shell: Shell) -> None:
    """It is found where the job looks for it, and read as it was."""
    ran(shell, "--input-rows", "all", "--no-fail-fast")
    (shell.folder / "out/first").rename(shell.folder / "out/other")
    shell.write("after.py", AFTER.replace("out/first", "out/other"))
    shown = shell.pipeline("show", "out/after", "--row", "1", "--job", "after.py")
    assert "[user]\nAgain " in shown.out


def test_a_run_over_a_run_over_a_run_keeps_all_columns_apart(shell: Shell) -> None:
    ran(shell)
    last = ran(shell, "-i", "out/after", "--set", "user={{ parsed }}", output="out/last")[0]
    assert {"input_parsed", "input_input_parsed", "parsed", "input_status", "input_input_status"} <= last.keys()


def test_only_the_columns_of_a_run_are_renamed_by_themselves() -> None:
    """Names that the job gives count; an input that has one or two such columns is refused with all of them."""
    run = dict.fromkeys(["id", *OURS], "string")
    job = Job(name="a", user="{{ id }}")
    assert job.columns_kept(run) == {"id": "id", **{name: f"input_{name}" for name in OURS}}
    given = job.replace(rename={"parsed": "before"}).columns_kept(run)
    assert (given["parsed"], given["status"]) == ("before", "input_status")
    assert job.replace(keep=["id", "parsed"]).columns_kept(run) == {"id": "id", "parsed": "input_parsed"}
    with pytest.raises(UsageError) as caught:
        job.columns_kept({"id": "string", "status": "string", "Error": "string"})
    assert "the input columns 'status', 'Error' have the names of output columns" in str(caught.value)
    rename = json.loads(str(caught.value).partition("rename=")[2])
    assert job.replace(rename=rename).columns_kept({"status": "string", "Error": "string"}) == rename


def part(folder: Path, name: str, states: list[str], *, first: int = 0) -> None:
    """A part of a run with rows of these states, in small row groups."""
    numbers = pa.array(range(first, first + len(states)), pa.int64())
    status = pa.array(states, pa.string()).dictionary_encode()
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"n": numbers, "status": status}), folder / PARTS / name, row_group_size=3)
    (folder / "_manifest.json").touch()
    (folder / "_SUCCESS").touch()


def numbers_in(found: Survey) -> list[list[int]]:
    """The values of `n`, chunk by chunk, each read by itself and from the last to the first."""
    chunks: list[list[int]] = []
    for index in reversed(range(len(found.chunks))):
        source = Source(found, needed=["n"], kept=["n"], added=["row"])
        batches = list(source.chunk(index))
        source.close()
        chunks.insert(0, [row.values["n"] for batch in batches for row in batch.rows])
        assert [row.ordinal for batch in batches for row in batch.rows] == [
            ordinal for batch in batches for ordinal in batch.kept["row"].to_pylist()
        ]
        assert chunks[0] == [number for batch in batches for number in batch.kept["n"].to_pylist()]
    return chunks


@given(
    files=st.lists(st.lists(st.sampled_from(["ok", "failed"]), max_size=12), min_size=1, max_size=3),
    chunk_rows=st.integers(1, 5),
    limit=st.none() | st.integers(0, 20),
)
def test_every_chunk_begins_where_the_one_before_ends_whichever_rows_are_ok(
    files: list[list[str]], chunk_rows: int, limit: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    states = [state for file in files for state in file]
    for index, file in enumerate(files):
        part(folder, f"part-{index:06d}.parquet", file, first=sum(map(len, files[:index])))
    found = survey(folder, chunk_rows=chunk_rows, limit=limit)
    wanted = [number for number, state in enumerate(states) if state == "ok"][:limit]
    assert found.rows == len(wanted)
    assert numbers_in(found) == [wanted[start : start + chunk_rows] for start in range(0, len(wanted), chunk_rows)]
    assert Survey.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_survey_of_an_earlier_version_reads_all_rows(tmp_path: Path) -> None:
    """It did not say which rows are read; a resume says that they would be others."""
    part(tmp_path, "part-000000.parquet", ["ok", "failed", "ok"])
    before = survey(tmp_path, rows="all").to_json()
    before["files"] = [file[:-1] for file in before["files"]]
    earlier = Survey.from_json(before)
    assert numbers_in(earlier) == [[0, 1, 2]]
    assert found_again(earlier, tmp_path, rows="all")[1] == []
    (difference,) = found_again(earlier, tmp_path)[1]
    assert "changed: all -> ok (--input-rows all)" in difference


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "_manifest.json").unlink(),
        lambda folder: (folder / PARTS / "part-000000.parquet").rename(folder / PARTS / "rows.parquet"),
    ],
    ids=["no manifest", "another name"],
)
def test_parquet_that_is_no_part_of_a_run_is_read_whole(change: Callable[[Path], Any], tmp_path: Path) -> None:
    """Whatever its columns are called."""
    part(tmp_path, "part-000000.parquet", ["ok", "failed", "ok"])
    change(tmp_path)
    assert survey(tmp_path).rows == 3
