"""`pipeline run --append`: rows that the input has gained are asked alone, and earlier parts stay as they are."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.run_folder import RunFolder
from tests.commands import JOB, Done, Shell
from tests.servers import Answer, Call, Served, chat, error, served

Change = Callable[[Path], object]


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt.removeprefix("Say ").upper()}))


def lines(first: int, last: int) -> str:
    return "".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(first, last))


def more(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A job that says where its rows come from, and five rows in one file."""
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB.replace("keep=", 'add=["row", "source_file", "source_row"], keep='))
    more(tmp_path / "in/2026-11-27.jsonl", lines(0, 5))
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def run(shell: Shell, server: Served, *arguments: str) -> Done:
    common = ("--base-url", server.base_url, "--no-adaptive", "-c", "16", "--quiet", "--json", "-o", "out/it")
    return shell.pipeline("run", "job.py", "-i", "in", *common, *arguments)


def appended(shell: Shell, server: Served, asked: int, rows: int) -> Done:
    """Appends, and asks no more rows than are new."""
    done = run(shell, server, "--append")
    assert (done.code, done.json["requests"], done.json["ok"]) == (0, asked, rows), done
    found = shell.output("out/it")
    assert [row["row"] for row in found] == list(range(rows))
    assert all(row["parsed"]["answer"] == row["text"].upper() for row in found)
    return done


def files(shell: Shell) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((shell.folder / "out/it/data").iterdir())}


def test_new_files_and_new_rows_of_files_follow_the_rows_that_are_there(shell: Shell, server: Served) -> None:
    """Also where their names sort before them. Parts that are sealed keep every byte; the order is that of time."""
    appended(shell, server, asked=5, rows=5)
    first = files(shell)
    more(shell.folder / "in/2026-11-27.jsonl", lines(5, 8))
    more(shell.folder / "in/2026-11-26.jsonl", lines(100, 102))
    more(shell.folder / "in/2026-11-27b.jsonl", lines(200, 201))
    assert "appending 6 rows to 5" in appended(shell, server, asked=6, rows=11).err
    second = files(shell)
    assert first.items() < second.items()
    more(shell.folder / "in/2026-11-27.jsonl", lines(8, 9))
    more(shell.folder / "in/2026-11-25.jsonl", lines(300, 301))
    appended(shell, server, asked=2, rows=13)
    assert second.items() < files(shell).items()
    assert [(row["source_file"], row["source_row"], row["id"]) for row in shell.output("out/it")] == [
        *(("2026-11-27.jsonl", n, n) for n in range(8 - 3)),
        *(("2026-11-27.jsonl", n, n) for n in range(5, 8)),
        ("2026-11-26.jsonl", 0, 100),
        ("2026-11-26.jsonl", 1, 101),
        ("2026-11-27b.jsonl", 0, 200),
        ("2026-11-27.jsonl", 8, 8),
        ("2026-11-25.jsonl", 0, 300),
    ]
    generations = shell.manifest("out/it")["generations"]
    assert [(one["first_row"], one["rows"], one["first_chunk"], one["files"]) for one in generations] == [
        (0, 5, 0, 1),
        (5, 6, 1, 3),
        (11, 2, 2, 2),
    ]
    # The same rows are the same run for a start that appends nothing.
    assert run(shell, server).json.items() >= {"requests": 0, "ok": 13}.items()


def test_nothing_new_changes_nothing(shell: Shell, server: Served) -> None:
    """The manifest and the marker keep their bytes and times, so that what waits for them is not started again."""
    appended(shell, server, asked=5, rows=5)
    kept = [shell.folder / "out/it" / name for name in ("_manifest.json", "_SUCCESS")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in kept]
    done = appended(shell, server, asked=0, rows=5)
    assert "nothing new: the input has no rows that were not asked yet" in done.err
    # Blank lines and empty files are no rows either.
    more(shell.folder / "in/2026-11-27.jsonl", "\n\n")
    more(shell.folder / "in/2026-11-28.jsonl", "")
    assert "nothing new" in appended(shell, server, asked=0, rows=5).err
    assert [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in kept] == before
    assert shell.pipeline("status", "out/it", "--json").json["status"] == "complete"
    more(shell.folder / "in/2026-11-28.jsonl", lines(5, 6))
    more(shell.folder / "in/2026-11-27.jsonl", lines(6, 7))
    appended(shell, server, asked=2, rows=7)


def truncated(path: Path) -> None:
    path.write_text(lines(0, 4), "utf-8")


def rewritten(path: Path) -> None:
    path.write_text(lines(1, 9), "utf-8")


def gone(path: Path) -> None:
    path.rename(path.parents[1] / "x.jsonl")
    more(path.parent / "y.jsonl", lines(9, 10))


CHANGES: dict[str, tuple[Change, str]] = {
    "a row that is read already": (lambda path: path.write_text(lines(1, 6), "utf-8"), "2026-11-27.jsonl has the same"),
    "the beginning of a file that has more": (rewritten, "that it has now the first are others"),
    "rows are gone": (truncated, "bytes and now has"),
    "a file is gone": (gone, "2026-11-27.jsonl is no longer in the input"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_p7_what_was_read_already_may_not_change(shell: Shell, server: Served, change: str) -> None:
    appended(shell, server, asked=5, rows=5)
    CHANGES[change][0](shell.folder / "in/2026-11-27.jsonl")
    more(shell.folder / "in/2026-11-28.jsonl", lines(50, 51))
    done = run(shell, server, "--append")
    assert (done.code, len(server.calls)) == (2, 5), done
    assert CHANGES[change][1] in done.err
    assert "--append only adds rows" in done.err
    assert "put it back as it was; or start over with --fresh, or choose another --output" in done.err
    assert (shell.folder / "out/it/_SUCCESS").exists()


def test_a_renamed_file_is_known_by_its_content(shell: Shell, server: Served) -> None:
    more(shell.folder / "in/2026-11-28.jsonl", lines(5, 7))
    appended(shell, server, asked=7, rows=7)
    (shell.folder / "in/2026-11-27.jsonl").rename(shell.folder / "in/old.jsonl")
    more(shell.folder / "in/2026-11-29.jsonl", lines(7, 8))
    appended(shell, server, asked=1, rows=8)
    assert run(shell, server, "--append").json["requests"] == 0


def test_without_append_a_larger_input_is_refused_and_the_option_named(shell: Shell, server: Served) -> None:
    run(shell, server)
    more(shell.folder / "in/2026-11-27.jsonl", lines(5, 6))
    assert "--append takes in rows that are new in the input" in run(shell, server).err
    more(shell.folder / "in/2026-11-28.jsonl", lines(6, 7))
    assert "--append takes in rows that are new in the input" in run(shell, server).err
    (shell.folder / "in/2026-11-27.jsonl").unlink()
    done = run(shell, server)
    assert done.code == 2
    assert "--append" not in done.err


OTHERS = {
    "prompt": ('"Say {{ text }}"', '"Sing {{ text }}"', "Sing"),
    "schema": ("answer: str", "answer: str | None", "schema changed"),
    "model": ("google/gemini-test", "google/gemini-other", "model changed"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_p8_another_job_is_refused_as_at_a_resume(shell: Shell, server: Served, other: str) -> None:
    appended(shell, server, asked=5, rows=5)
    before, now, told = OTHERS[other]
    shell.write("job.py", (shell.folder / "job.py").read_text("utf-8").replace(before, now))
    more(shell.folder / "in/2026-11-28.jsonl", lines(50, 51))
    done = run(shell, server, "--append")
    assert (done.code, len(server.calls)) == (2, 5)
    assert "already holds a different run" in done.err
    assert told in done.err


def test_a_last_line_without_an_end_that_goes_on_is_a_changed_row(shell: Shell, server: Served) -> None:
    """As when a file is read while it is written; one that only gets its end is not."""
    path = shell.folder / "in/2026-11-27.jsonl"
    more(path, '{"id": 5, "text": "text 5"}')
    appended(shell, server, asked=6, rows=6)
    more(path, "\n")
    assert "nothing new" in appended(shell, server, asked=0, rows=6).err
    more(path, '{"id": 6, "text": "text 6"}')
    appended(shell, server, asked=1, rows=7)
    more(path, "\n" + lines(7, 8))
    appended(shell, server, asked=1, rows=8)
    more(path, lines(8, 9) + '{"id": 9, "text": "text')
    assert run(shell, server, "--append", "--no-fail-fast").json["failed"] == 1
    more(path, ' 9"}\n')
    done = run(shell, server, "--append")
    assert done.code == 2
    assert "2026-11-27.jsonl goes on in its last row, which had no end when it was read: row 10 of it" in done.err


OPENERS: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


@pytest.mark.parametrize("compression", OPENERS)
def test_a_compressed_file_grows_by_a_member(shell: Shell, server: Served, compression: str) -> None:
    """Written anew, its first bytes are others, and it is refused."""
    opened = OPENERS[compression]
    path = shell.folder / f"in/b.jsonl.{compression}"
    for first, last in ((5, 8), (8, 10)):
        with opened(path, "ab") as file:
            file.write(lines(first, last).encode())
        appended(shell, server, asked=last - first + (5 if first == 5 else 0), rows=last)
    with opened(path, "wb") as file:
        file.write(lines(5, 40).encode())
    done = run(shell, server, "--append")
    assert done.code == 2
    assert f"b.jsonl.{compression} had" in done.err


def test_csv_grows_below_its_header(shell: Shell, server: Served) -> None:
    """Also by another file with a header of its own. A quote that was open is closed by new rows: a changed row."""
    (shell.folder / "in/2026-11-27.jsonl").unlink()
    more(shell.folder / "in/a.csv", "id,text\n0,text 0\n1,text 1\n")
    appended(shell, server, asked=2, rows=2)
    more(shell.folder / "in/a.csv", '2,"text 2"\n')
    more(shell.folder / "in/0.csv", "text,id\ntext 3,3\n")
    appended(shell, server, asked=2, rows=4)
    assert [row["id"] for row in shell.output("out/it")] == ["0", "1", "2", "3"]
    more(shell.folder / "in/a.csv", '4,text 4\n5,"text\n')
    assert run(shell, server, "--append", "--no-fail-fast").json["failed"] == 1
    more(shell.folder / "in/a.csv", '5"\n6,text 6\n')
    done = run(shell, server, "--append")
    assert done.code == 2
    assert "a.csv goes on in its last row" in done.err


def parquet(shell: Shell, name: str, first: int, last: int, ids: pa.DataType | None = None) -> None:
    numbers = pa.array(range(first, last), ids or pa.int64())
    texts = pa.array([f"text {n}" for n in range(first, last)], pa.string())
    pq.write_table(pa.table({"id": numbers, "text": texts}), shell.folder / "in" / name)


def test_parquet_files_are_added_and_one_that_was_written_again_is_refused(shell: Shell, server: Served) -> None:
    """A narrower type of a column is taken; a wider one would change the type of all parts."""
    (shell.folder / "in/2026-11-27.jsonl").unlink()
    parquet(shell, "b.parquet", 0, 3)
    appended(shell, server, asked=3, rows=3)
    parquet(shell, "a.parquet", 3, 5, pa.int16())
    appended(shell, server, asked=2, rows=5)
    nothing = pa.table({"id": pa.nulls(1), "text": pa.array(["text 5"])})
    pq.write_table(nothing, shell.folder / "in/c.parquet")
    appended(shell, server, asked=1, rows=6)
    parquet(shell, "d.parquet", 6, 7, pa.float64())
    done = run(shell, server, "--append")
    assert done.code == 2
    assert "column 'id' is int64 in the rows of the run, and double in " in done.err
    assert "d.parquet" in done.err
    (shell.folder / "in/d.parquet").unlink()
    parquet(shell, "b.parquet", 0, 4)
    done = run(shell, server, "--append")
    assert done.code == 2
    assert "b.parquet had" in done.err


def test_columns_stay_those_of_the_first_rows(shell: Shell, server: Served) -> None:
    """Rows without values, or without a column, fit. A column that only new rows have is left out, and reported."""
    appended(shell, server, asked=5, rows=5)
    columns = pq.read_schema(shell.folder / "out/it/data/part-000000.parquet")
    more(shell.folder / "in/b.jsonl", '{"id": null, "text": "text 5", "more": 1}\n{"text": "text 6"}\n')
    done = appended(shell, server, asked=2, rows=7)
    assert (
        "columns that only the new rows have are left out, since the first rows fixed the columns: 'more'" in done.err
    )
    assert pq.read_schema(shell.folder / "out/it/data/part-000001.parquet") == columns
    more(shell.folder / "in/c.jsonl", '{"id": "seven", "text": "text 7"}\n')
    done = run(shell, server, "--append")
    assert (done.code, len(server.calls)) == (2, 7)
    assert "column 'id' is int64 in the rows of the run, and the new rows hold values of another type" in done.err


def test_a_run_that_was_stopped_asks_its_own_rows_and_the_new_ones(shell: Shell, tmp_path: Path) -> None:
    """Both in one start, each once. A start without --append then goes on with all of them."""
    left = iter(range(2))
    with served(lambda call: answer(call) if next(left, None) is not None else error(403)) as server:
        assert run(shell, server, "--append", "-c", "1").code == 7
    more(tmp_path / "in/2026-11-26.jsonl", lines(5, 7))
    left = iter(range(1))
    with served(lambda call: answer(call) if next(left, None) is not None else error(403)) as server:
        assert run(shell, server, "--append", "-c", "1").code == 7
        assert not (tmp_path / "out/it/_SUCCESS").exists()
    with served(answer) as server:
        assert run(shell, server).json.items() >= {"requests": 4, "ok": 7}.items()
    assert [row["id"] for row in shell.output("out/it")] == list(range(7))


def test_failed_rows_are_asked_again_together_with_the_new_ones(shell: Shell, server: Served) -> None:
    server.follow(lambda call: error(400) if call.prompt.endswith("3") else answer(call))
    assert run(shell, server, "--append", "--no-fail-fast").code == 3
    server.follow(answer)
    more(shell.folder / "in/2026-11-28.jsonl", lines(5, 7))
    done = run(shell, server, "--append", "--retry-failed")
    assert (done.code, done.json["requests"], done.json["ok"]) == (0, 3, 7)
    assert [row["id"] for row in shell.output("out/it")] == list(range(7))


def test_the_first_rows_of_an_input_are_no_run_to_append_to(shell: Shell, server: Served) -> None:
    """A trial with --limit goes on with the rest of its own input; --limit itself cannot be combined."""
    assert run(shell, server, "--limit", "3").code == 0
    done = run(shell, server, "--append", "--limit", "4")
    assert done.code == 2
    assert "leave one of them out" in done.err
    appended(shell, server, asked=2, rows=5)
    more(shell.folder / "in/2026-11-28.jsonl", lines(5, 6))
    appended(shell, server, asked=1, rows=6)
    done = run(shell, server, "--append", "--fresh")
    assert done.code == 2
    assert "nothing to append to" in done.err


def test_show_export_report_and_reparse_know_all_generations(shell: Shell, server: Served) -> None:
    appended(shell, server, asked=5, rows=5)
    more(shell.folder / "in/2026-11-27.jsonl", lines(5, 8))
    more(shell.folder / "in/2026-11-26.jsonl", lines(8, 10))
    appended(shell, server, asked=5, rows=10)
    shown = shell.pipeline("show", "out/it", "--row", "9")
    assert "Say text 9" in shown.out, shown.out
    assert shell.pipeline("export", "out/it", "--to", "all.jsonl").code == 0
    exported = [json.loads(line) for line in (shell.folder / "all.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in exported] == list(range(10))
    assert shell.pipeline("report", "out/it").code == 0
    shell.write("job.py", (shell.folder / "job.py").read_text("utf-8").replace("answer: str", "answer: str | None"))
    assert shell.pipeline("reparse", "out/it", "--job", "job.py").code == 0
    more(shell.folder / "in/2026-11-27.jsonl", lines(10, 11))
    appended(shell, server, asked=1, rows=11)


def test_a_dataset_that_grows_is_an_input_that_grows(shell: Shell, server: Served) -> None:
    """Each night's parts of one job are new files of the next."""
    appended(shell, server, asked=5, rows=5)
    shell.write("next.py", JOB.replace('"rows.jsonl"', '"out/it"').replace("Say {{ text }}", "Say {{ text }}!"))
    following = ("run", "next.py", "--append", "--base-url", server.base_url, "--quiet", "--json", "-o", "out/next")
    assert shell.pipeline(*following).json["requests"] == 5
    more(shell.folder / "in/2026-11-28.jsonl", lines(5, 7))
    appended(shell, server, asked=2, rows=7)
    assert shell.pipeline(*following).json.items() >= {"requests": 2, "ok": 7}.items()
    assert shell.pipeline(*following).json["requests"] == 0


def test_an_earlier_plan_without_generations_is_appended_to(shell: Shell, server: Served) -> None:
    appended(shell, server, asked=5, rows=5)
    path = RunFolder(shell.folder / "out/it").run / "plan.json"
    plan = json.loads(path.read_bytes())
    del plan["survey"]["appended"], plan["survey"]["left_out"]
    path.write_text(json.dumps(plan), "utf-8")
    more(shell.folder / "in/2026-11-28.jsonl", lines(5, 7))
    appended(shell, server, asked=2, rows=7)


def test_each_generation_must_keep_within_max_failed(shell: Shell, server: Served) -> None:
    """New rows that all fail among many that are ok are not a complete dataset, as they would not be on their own."""
    more(shell.folder / "in/2026-11-27.jsonl", lines(5, 50))
    appended(shell, server, asked=50, rows=50)
    more(shell.folder / "in/2026-11-28.jsonl", lines(50, 53))
    server.follow(lambda _: error(400))
    done = run(shell, server, "--append", "--no-fail-fast")
    assert (done.code, done.json["status"], done.json["failed"]) == (3, "failed", 3)
    assert "3 of 3 rows appended 2" in done.json["reason"]
    assert not (shell.folder / "out/it/_SUCCESS").exists()
    server.follow(answer)
    more(shell.folder / "in/2026-11-29.jsonl", lines(53, 54))
    assert run(shell, server, "--append").json.items() >= {"exit_code": 3, "requests": 1}.items()
    assert run(shell, server, "--append", "--retry-failed").json.items() >= {"exit_code": 0, "requests": 3}.items()


def test_too_many_failures_among_the_new_rows_stop_the_start(shell: Shell, server: Served) -> None:
    """Long before as many failed as would be allowed of all rows."""
    more(shell.folder / "in/2026-11-27.jsonl", lines(5, 1000))
    appended(shell, server, asked=1000, rows=1000)
    more(shell.folder / "in/2026-11-28.jsonl", lines(1000, 1108))
    server.follow(lambda _: error(400))
    done = run(shell, server, "--append", "-c", "4")
    assert (done.code, done.json["status"]) == (3, "stopped")
    assert done.json["left"] > 0


def test_a_budget_counts_from_the_last_append_on(shell: Shell, server: Served) -> None:
    """So that a line for every night may name the budget of a night."""

    def night(rows: int) -> Done:
        more(shell.folder / "in/2026-11-27.jsonl", lines(rows - 20, rows))
        return run(shell, server, "--append", "--budget-tokens", "900", "-c", "1")  # of which a row takes 15

    more(shell.folder / "in/2026-11-27.jsonl", lines(5, 20))
    for rows in (40, 60, 80):
        done = night(rows)
        assert done.json.items() >= {"exit_code": 0, "ok": rows}.items(), done.out
    assert done.json["run_input_tokens"] + done.json["run_output_tokens"] == 15 * 80
    more(shell.folder / "in/2026-11-27.jsonl", lines(80, 200))
    assert night(220).json["exit_code"] == 6
    left = run(shell, server, "--append", "--budget-tokens", "900", "-c", "1").json
    assert (left["exit_code"], left["requests"]) == (6, 0)


def test_new_files_may_change_as_long_as_none_of_their_rows_was_answered(shell: Shell, server: Served) -> None:
    """A start that came to nothing does not hold the run to them."""
    appended(shell, server, asked=5, rows=5)
    more(shell.folder / "in/2026-11-28.jsonl", lines(50, 60))
    server.follow(lambda _: error(401))
    assert run(shell, server, "--append").code == 7
    server.follow(answer)
    (shell.folder / "in/2026-11-28.jsonl").unlink()
    more(shell.folder / "in/2026-11-29.jsonl", lines(5, 6))
    assert "appending 1 row to 5" in run(shell, server, "--append").err
    (shell.folder / "in/2026-11-29.jsonl").unlink()
    assert "is gone" in run(shell, server, "--append").err


def test_plan_counts_the_rows_that_an_append_would_ask(shell: Shell, server: Served) -> None:
    appended(shell, server, asked=5, rows=5)
    more(shell.folder / "in/2026-11-28.jsonl", lines(5, 8))
    plan = shell.pipeline("plan", "job.py", "-i", "in", "-o", "out/it", "--rows", "0", "--json").json
    assert plan["requests"] == 3
    assert "out/it holds 5 of these rows: `pipeline run` takes in the others with --append" in " ".join(plan["notes"])
