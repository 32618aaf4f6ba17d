"""Rows of a run as a user looks at them: what was asked, what came, also while the run works."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import Reply
from pipeline.execution.run_rows import RunRows, Selection
from pipeline.execution.run_status import run_status
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import worker_journal_path
from pipeline.storage.run_folder import JOURNAL
from tests.commands import CHUNK, JOB, Done, Shell, ended
from tests.servers import Answer, Call, Held, chat, error, served
from tests.test_cli import error_of, lines_of, script

KEYED = JOB.replace('keep=["id", "text"]', 'keep=["id"], key="id"')
"""The prompt's column is not copied to the output, and rows are known by their ids."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "sk-canary-secret"})
    shell.write("job.py", KEYED)
    rows(shell, "b1", "b2", "b3")
    return shell


def rows(shell: Shell, *keys: object) -> None:
    shell.write("rows.jsonl", "".join(json.dumps({"id": key, "text": f"text of {key}"}) + "\n" for key in keys))


def refusing(call: Call) -> Answer:
    return error(400, message="refused") if call.prompt.endswith("b2") else script(call)


def ran(shell: Shell, *options: str) -> None:
    with served(refusing) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--set", "max_failed=9", *options)
    assert done.code == 0, done


def show(shell: Shell, *options: str) -> Done:
    done = shell.pipeline("show", "out/a_job", *options)
    assert done.code == 0, done
    return done


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come, a minute at most."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come within a minute")


def test_a_request_is_shown_from_the_input_whatever_the_output_has_kept(shell: Shell) -> None:
    ran(shell)
    done = show(shell, "--failed")
    assert "=== id b2 (row 1): failed" in done.out
    assert "--- request\n[user]\nSay text of b2\n" in done.out
    assert "--- error\nRefused: 400: refused" in done.out
    assert "cannot be asked" not in done.out + done.err
    assert done.err == ""


def test_rows_are_chosen_by_the_key_of_the_job(shell: Shell) -> None:
    rows(shell, "b1", 7, "b1", "a b")
    ran(shell)
    assert [row["ordinal"] for row in lines_of(show(shell, "--key", "b1", "--json"))] == [0, 2]
    assert [row["ordinal"] for row in lines_of(show(shell, "--key", "7", "--json"))] == [1]
    assert "=== id a b (row 3): ok" in show(shell, "--key", "a b").out
    missing = shell.pipeline("show", "out/a_job", "--key", "zz")
    assert error_of(missing) == "no row that was answered has 'zz' as its id"
    assert "no failed rows so far" in show(shell, "--failed").err


@pytest.mark.parametrize("key", [7, -1, 2.5, True, "a/b", "ümlaut \N{SNOWMAN}", "", "None", [1, "x"], {"a": 1}])
def test_any_value_that_is_a_key_finds_its_row_and_null_none(key: object, shell: Shell) -> None:
    rows(shell, key, None)
    ran(shell)
    text = str(shell.output()[0]["id"])
    assert [row["ordinal"] for row in lines_of(show(shell, "--key", text, "--json"))] == [0]


def test_a_renamed_key_is_still_the_key(shell: Shell) -> None:
    shell.write("job.py", KEYED.replace('key="id"', 'key="id", rename={"id": "booking"}'))
    ran(shell)
    assert "=== booking b3 (row 2): ok" in show(shell, "--key", "b3").out


def test_a_key_renamed_for_bigquery_is_the_key_in_show_and_on_the_page(shell: Shell) -> None:
    shell.write("rows.jsonl", '{"booking.id": "b1", "text": "a"}\n{"booking.id": "b2", "text": "b2"}\n')
    key = 'keep=["booking.id"], key="booking.id", rename="bigquery"'
    shell.write("job.py", KEYED.replace('keep=["id"], key="id"', key))
    ran(shell)
    assert "=== booking_id b1 (row 0): ok" in show(shell, "--key", "b1").out
    assert shell.pipeline("report", "out/a_job").code == 0
    page = (shell.folder / "out/a_job/_report.html").read_text("utf-8")
    assert "booking_id" in page


def test_a_job_without_a_key_says_how_to_choose_rows(shell: Shell) -> None:
    shell.write("job.py", JOB)
    ran(shell)
    assert "--row ORDINAL" in error_of(shell.pipeline("show", "out/a_job", "--key", "b1"))
    assert "=== row 2: ok" in show(shell, "--row", "2").out


def test_the_blanks_and_lines_of_a_prompt_are_shown_as_they_were_sent(shell: Shell) -> None:
    odd = "  two  blanks\n\n\tindented\n    four" + " x" * 2000
    shell.write(
        "rows.jsonl", json.dumps({"id": "b1", "text": odd}) + "\n" + json.dumps({"id": "c", "text": "c"}) + "\n"
    )
    with served(script) as server:
        shell.pipeline("run", "job.py", "--base-url", server.base_url)
        (sent,) = [call.prompt for call in server.calls if "blanks" in call.prompt]
    assert f"[user]\n{sent}\n" in show(shell, "--key", "b1").out
    assert f"[user]\n{sent}\n" in shell.pipeline("plan", "job.py").out
    assert "... 2,0" in show(shell).out
    assert "more characters" in show(shell).out


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "gz"])
def test_an_input_that_has_moved_with_its_job_is_found_again(kind: str, shell: Shell) -> None:
    import gzip

    source = shell.folder / "rows.jsonl"
    if kind == "gz":
        (shell.folder / "rows.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    if kind == "parquet":
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(lines), shell.folder / "rows.parquet")
    name = {"jsonl": "rows.jsonl", "gz": "rows.jsonl.gz", "parquet": "rows.parquet"}[kind]
    shell.write("job.py", KEYED.replace("rows.jsonl", name))
    ran(shell)
    (elsewhere := shell.folder / "elsewhere").mkdir()
    for path in ("job.py", name, "out"):
        (shell.folder / path).rename(elsewhere / path)
    assert "Say text of b3" in show(Shell(elsewhere, shell.variables), "--key", "b3").out


def test_an_input_that_has_changed_is_said_so_and_no_wrong_request_is_shown(shell: Shell) -> None:
    ran(shell)
    rows(shell, "b1", "zz", "b3")
    done = show(shell, "--row", "1")
    assert "note: no request is shown: the input is no longer the one that was asked" in done.err
    assert "request" not in done.out
    assert '"id": "b2"' in done.out


def test_columns_of_the_output_stand_in_for_an_input_that_is_gone(shell: Shell) -> None:
    shell.write("job.py", JOB)
    ran(shell)
    (shell.folder / "rows.jsonl").unlink()
    done = show(shell, "--row", "1")
    assert "requests are shown with the columns that are in the output" in done.err
    assert "Say text of b2" in done.out


def test_a_column_that_the_output_has_under_another_name_stands_in_for_nothing(shell: Shell) -> None:
    """`text` of the output is another column than the prompt's."""
    shell.write("rows.jsonl", '{"text": "a", "other": "b"}\n')
    shell.write("job.py", JOB.replace('keep=["id", "text"]', 'keep=["other"], rename={"other": "text"}'))
    ran(shell)
    (shell.folder / "rows.jsonl").unlink()
    done = show(shell)
    assert "no request is shown" in done.err
    assert "Say" not in done.out


def test_a_row_whose_prompt_cannot_be_made_again_is_not_said_to_be_unaskable(shell: Shell) -> None:
    text = 'import os\n\n\ndef ask(row):\n    return "Say " + os.environ["WORD"]\n\n\n'
    shell.write("job.py", text + KEYED.replace('"Say {{ text }}"', "ask"))
    ran(Shell(shell.folder, {**shell.variables, "WORD": "hello"}))
    shown = show(shell).out
    assert "(it cannot be shown: the prompt's function raised KeyError" in shown
    assert "cannot be asked" not in shown


def test_a_row_that_was_never_asked_is_said_to_be_so(shell: Shell) -> None:
    shell.write("rows.jsonl", '{"id": "b1", "text": "x"}\n{"id": "b9", "text": null}\n')
    ran(shell)
    shown = show(shell, "--failed").out
    assert "=== id b9 (row 1): failed" in shown
    assert "(the row was not asked)" in shown


@pytest.fixture
def at_work(shell: Shell) -> Any:
    """A run of which 8 rows of 12 are answered, one of them refused, and none is in a part."""
    rows(shell, *(f"b{number}" for number in range(12)))

    def holding(call: Call) -> Any:
        answer = refusing(call)
        return Held(answer) if int(call.prompt.split("b")[-1]) >= 8 else answer

    with (
        served(holding) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "-c", "4", "--quiet") as child,
    ):
        server.arrived(8)
        until(lambda: len(list(RunRows(shell.folder / "out/a_job").select(Selection()))) == 8)
        yield child
        child.kill()
        ended(child)
        server.release()


def test_rows_of_a_run_at_work_are_shown_out_of_its_journal(shell: Shell, at_work: Any) -> None:
    assert at_work.poll() is None
    done = show(shell, "--key", "b2")
    assert "=== id b2 (row 2): failed, not yet written to a part" in done.out
    assert "Say text of b2" in done.out
    found = lines_of(show(shell, "--json", "-n", "100"))
    assert [(row["ordinal"], row["id"], row["status"]) for row in found] == [
        (number, f"b{number}", "failed" if number == 2 else "ok") for number in range(8)
    ]
    assert found[3]["parsed"] == {"answer": "text of b3"}
    assert [row["ordinal"] for row in lines_of(show(shell, "--json", "--failed"))] == [2]
    assert "row 9 has not been answered yet" in error_of(shell.pipeline("show", "out/a_job", "--row", "9"))
    assert "there is no row 12" in error_of(shell.pipeline("show", "out/a_job", "--row", "12"))


def test_without_its_job_a_row_in_the_journal_is_shown_as_answered(shell: Shell, at_work: Any) -> None:
    at_work.kill()
    (shell.folder / "job.py").unlink()
    done = show(shell, "-n", "3")
    assert "requests are not shown" in done.err
    assert "=== row 0: answered, not yet written to a part" in done.out
    assert '"answer": "text of b0"' in done.out
    assert "=== row 2: failed, not yet written to a part" in done.out


def test_a_journal_is_opened_as_often_for_many_rows_as_for_few(tmp_path: Path) -> None:
    counts = []
    for rows in (3, 60):
        output = tmp_path / str(rows)
        (output / "_run").mkdir(parents=True)
        for number, path in enumerate((journal := output / "_run" / JOURNAL, worker_journal_path(journal, 0))):
            keep(path, range(number, rows, 2))
        with opened_databases() as opened:
            assert [row.ordinal for row in RunRows(output).select(Selection())] == list(range(rows))
        counts.append(len(opened))
    assert counts[0] == counts[1]


def keep(path: Path, ordinals: Iterable[int]) -> None:
    """Puts a reply of each of these rows into a journal."""
    journal = Journal(path)

    async def fill() -> None:
        for ordinal in ordinals:
            await journal.put(ordinal, Reply(b"{}"))

    anyio.run(fill)
    journal.close()


@contextmanager
def opened_databases() -> Iterator[list[object]]:
    """The databases that are opened within the block. Python cannot remove its audit hook: afterwards it is idle."""
    opened: list[object] = []
    listens = [True]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "sqlite3.connect" and listens:
            opened.append(arguments[0])

    sys.addaudithook(note)
    yield opened
    listens.clear()


def test_sealed_rows_and_those_of_the_journal_come_in_the_order_of_the_rows(shell: Shell) -> None:
    shell.write("job.py", JOB)
    shell.rows(CHUNK + 20, heavy=True)

    with (
        served(lambda call: Held(script(call)) if call.prompt == "Say text 0" else script(call)) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--quiet", "--no-adaptive") as child,
    ):
        server.arrived(CHUNK)
        until(lambda: run_status(shell.folder / "out/a_job").sealed_parts == 1)
        until(lambda: run_status(shell.folder / "out/a_job").done == CHUNK + 19)
        child.kill()
        ended(child)
        server.release()
    output = shell.folder / "out/a_job"
    everything = [row.ordinal for row in RunRows(output).select(Selection())]
    assert everything == list(range(1, CHUNK + 20))
    assert [row.ordinal for row in RunRows(output).select(Selection(ordinal=CHUNK + 7))] == [CHUNK + 7]
    assert [row.sealed for row in RunRows(output).select(Selection(ordinal=7))] == [False]
    assert "Say text 1007" in show(shell, "--row", str(CHUNK + 7)).out


def test_a_model_that_answers_in_pictures_of_a_terminal_is_shown_as_text(shell: Shell) -> None:
    with served(lambda _: chat(json.dumps({"answer": "\x1b[2J[bold]"}))) as server:
        shell.pipeline("run", "job.py", "--base-url", server.base_url)
    assert "\x1b" not in show(shell).out
