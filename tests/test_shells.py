"""The exit code is the run's, whoever reads what it says, in whatever shell, language and container."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import streams
from pipeline.cli.samples import for_the_eye
from pipeline.cli.tables import json_line
from pipeline.storage.batches import rows_of
from tests.commands import JOB, Done, Shell, ended
from tests.servers import Answer, Call, Served, Silence, chat, served


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(3)
    shell.write("bad.jsonl", '{"id": 1, "text": null}\n')
    return shell


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt}))


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def sh(shell: Shell, script: str, *arguments: str, **variables: str) -> Done:
    """`pipeline ARGUMENTS` as `"$@"` of a shell script."""
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "pipeline", *arguments]
    environment = {**shell.environment, **variables}
    done = subprocess.run(command, cwd=shell.folder, env=environment, capture_output=True, timeout=120, check=False)
    text = {"encoding": "utf-8", "errors": "surrogateescape"}
    return Done(done.returncode, done.stdout.decode(**text), done.stderr.decode(**text))


GONE = '"$@" | true; exit ${PIPESTATUS[0]}'
BOTH_GONE = '"$@" 2>&1 | true; exit ${PIPESTATUS[0]}'
SCRIPTS = {
    "the reader has gone": GONE,
    "the reader of both has gone": BOTH_GONE,
    "stdout closed": '"$@" >&-',
    "stderr closed": '"$@" 2>&-',
    "all closed": '"$@" <&- >&- 2>&-',
    "stdout full": '"$@" >/dev/full',
    "stderr full": '"$@" 2>/dev/full',
    "stdout only readable": '"$@" 1</dev/null',
}


@pytest.mark.parametrize("buffering", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_p12_the_exit_code_is_the_runs_whatever_becomes_of_its_output(
    script: str, buffering: str, shell: Shell, server: Served
) -> None:
    flags = ("run", "job.py", "--base-url", server.base_url)
    good = sh(shell, SCRIPTS[script], *flags, PYTHONUNBUFFERED=buffering)
    assert good.code == 0, good
    bad = sh(shell, SCRIPTS[script], *flags, "--input", "bad.jsonl", "--output", "out/bad", PYTHONUNBUFFERED=buffering)
    assert bad.code == 3, bad
    assert "Traceback" not in good.err + bad.err + good.out + bad.out
    assert len(shell.output()) == 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_p12_other_commands_end_as_they_would(script: str, shell: Shell, server: Served) -> None:
    assert shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet").code == 0
    assert sh(shell, SCRIPTS[script], "show", "out/a_job").code == 0
    assert sh(shell, SCRIPTS[script], "status", "none").code == 2


def test_p12_a_descriptor_that_was_closed_is_no_file_of_the_run(shell: Shell, server: Served) -> None:
    """Or what is printed would land in the journal."""
    done = sh(shell, '"$@" >&- 2>&- <&-', "run", "job.py", "--base-url", server.base_url, "--json")
    assert done == Done(0, "", "")
    assert len(shell.output()) == 3
    assert shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json", "--quiet").json["requests"] == 0


def test_p12_with_stderr_closed_stdout_has_the_one_line_and_no_other(shell: Shell, server: Served) -> None:
    done = sh(shell, '"$@" 2>&-', "run", "job.py", "--base-url", server.base_url, "--json")
    assert done.json["ok"] == 3


def test_p12_a_full_disk_under_the_output_of_the_command_is_told(shell: Shell, server: Served) -> None:
    done = sh(shell, '"$@" >/dev/full', "run", "job.py", "--base-url", server.base_url, "--json", "--quiet")
    assert (done.code, "standard output could not be written (No space left" in done.err) == (0, True), done


LOCALES: Mapping[str, Mapping[str, str]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "C without coercion": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "utf-16": {"PYTHONIOENCODING": "utf-16-le"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_p12_letters_that_the_terminal_lacks_are_escaped(locale: str, shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", json.dumps({"id": 1, "text": "größe łódź \N{PARTY POPPER}"}, ensure_ascii=False) + "\n")
    flags = ("run", "job.py", "--base-url", server.base_url)
    for more in ((), ("--json",)):
        done = sh(shell, '"$@"', *flags, *more, "--output", "out/größe łódź", **LOCALES[locale])
        assert done.code == 0, done
        assert "Traceback" not in done.err
        assert done.out
    shown = sh(shell, '"$@"', "show", "out/größe łódź", **LOCALES[locale])
    assert shown.code == 0, shown


@pytest.mark.parametrize("name", ["größe", "łódź", "\N{PARTY POPPER}", "a b", os.fsdecode(b"\xff\xfe")])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_p12_a_line_of_json_names_the_folder_whatever_it_is_called(
    name: str, encoding: str, shell: Shell, server: Served
) -> None:
    flags = ("run", "job.py", "--base-url", server.base_url, "--quiet", "--json", "--output", f"out/{name}")
    done = sh(shell, '"$@"', *flags, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert done.code == 0, done
    assert done.json["output"] == f"out/{name}"


@given(st.text(st.characters()))
def test_p12_a_line_of_json_is_the_same_value_in_any_encoding(text: str) -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        before, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        try:
            line = json_line({"text": text})
            line.encode(encoding)
        finally:
            sys.stdout = before
        assert json.loads(line) == {"text": text}


@pytest.mark.parametrize("columns", ["1", "0", "many"])
def test_p12_a_narrow_terminal_is_no_obstacle(columns: str, shell: Shell, server: Served) -> None:
    done = sh(shell, '"$@"', "run", "job.py", "--base-url", server.base_url, COLUMNS=columns, TERM="dumb")
    assert done.code == 0, done
    assert sh(shell, '"$@"', "show", "out/a_job", COLUMNS=columns).code == 0
    assert sh(shell, '"$@"', "run", "--help", COLUMNS=columns).code == 0


# Values


def utf8(*values: bytes) -> pa.Array:
    """Text of any bytes."""
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value))
    buffers = [None, pa.py_buffer(struct.pack(f"<{len(offsets)}i", *offsets)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


NS = pa.array([1764300000123456789], pa.timestamp("ns"))
FAR = pa.array([253402300800000000], pa.timestamp("us"))
ODD: dict[str, tuple[pa.Array, Any]] = {
    "nanoseconds": (NS, "2025-11-28 03:20:00.123456789"),
    "nanoseconds in UTC": (NS.cast(pa.timestamp("ns", "UTC")), "2025-11-28 03:20:00.123456789Z"),
    "a zone that nobody knows": (NS.cast(pa.timestamp("ns", "Mars/Base")), "2025-11-28 03:20:00.123456789Z"),
    "the year 10000": (FAR, "10000-01-01 00:00:00.000000"),
    "a day far away": (pa.array([10**8], pa.date32()), None),
    "a nanosecond of the day": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
    "a long duration": (pa.array([2**62], pa.duration("s")), None),
    "no UTF-8": (utf8(b"a\xff"), "a\N{REPLACEMENT CHARACTER}"),
    "in a struct": (pa.StructArray.from_arrays([NS, pa.array([1])], ["at", "n"]), None),
    "in a list": (pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), NS), ["2025-11-28 03:20:00.123456789"]),
    "in a dictionary": (pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), NS), "2025-11-28 03:20:00.123456789"),
    "in a map": (
        pa.MapArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["k"]), NS),
        [("k", "2025-11-28 03:20:00.123456789")],
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_p12_i8_a_value_that_python_has_no_form_for_is_shown_in_words(odd: str) -> None:
    column, shown = ODD[odd]
    (row,) = rows_of(pa.record_batch({"x": column, "plain": pa.array([7])}))
    assert row["plain"] == 7
    assert shown is None or row["x"] == shown
    assert json_line(row)


@pytest.mark.parametrize("odd", ODD)
def test_p12_i8_a_kept_column_without_a_python_form_fails_neither_run_nor_show(
    odd: str, shell: Shell, server: Served
) -> None:
    table = pa.table({"id": [1], "text": ["a"], "x": ODD[odd][0]})
    try:
        pq.write_table(table, shell.folder / "rows.parquet")
    except pa.ArrowException:
        pytest.skip("Parquet has no form for it either")
    shell.write("job.py", JOB.replace('keep=["id", "text"],', ""))
    flags = ("--input", "rows.parquet", "--base-url", server.base_url)
    done = shell.pipeline("run", "job.py", *flags, "--report")
    assert done.code == 0, done
    assert "note:" not in done.err
    for command in (("show", "out/a_job"), ("show", "out/a_job", "--json"), ("report", "out/a_job")):
        assert shell.pipeline(*command).code == 0


@pytest.mark.parametrize("extra", [{"PYTHONTZPATH": ""}, {"PYTHONTZPATH": "/nonexistent"}])
def test_p12_i8_no_time_zone_data_on_the_system_is_no_obstacle(
    extra: Mapping[str, str], shell: Shell, server: Served
) -> None:
    at = pa.array([1764300000123456], pa.timestamp("us", "Europe/Berlin"))
    pq.write_table(pa.table({"id": [1], "text": ["a"], "at": at}), shell.folder / "rows.parquet")
    shell.write("job.py", JOB.replace("Say {{ text }}", "Say {{ at }}").replace('keep=["id", "text"],', ""))
    flags = ("--input", "rows.parquet", "--base-url", server.base_url)
    done = sh(shell, '"$@"', "run", "job.py", *flags, **extra)
    assert done.code == 0, done
    assert server.calls[0].prompt == "Say 2025-11-28 04:20:00.123456+01:00"
    for command in ("show", "report"):
        assert sh(shell, '"$@"', command, "out/a_job", **extra).code == 0


def test_p12_what_is_shown_for_the_eye_never_fails_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("no canvas\x1b[2J")

    with for_the_eye("a picture"):
        fail()
    assert capsys.readouterr().err == "note: a picture cannot be shown: no canvas\N{REPLACEMENT CHARACTER}[2J\n"


def test_p12_a_page_that_cannot_be_written_is_a_note(shell: Shell, server: Served) -> None:
    (shell.folder / "out/a_job/_report.html/x").mkdir(parents=True)
    (shell.folder / "out/a_job/_run").mkdir()
    done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--report", "--quiet")
    assert (done.code, "note: the page of the run cannot be shown" in done.err) == (0, True), done


# Signals


@pytest.mark.parametrize("processes", ["1", "2"])
def test_p12_p2_a_closed_session_drains_as_sigterm_does(processes: str, shell: Shell) -> None:
    shell.rows(300)

    def half(call: Call) -> Answer | Silence:
        return answer(call) if int(call.prompt.rpartition(" ")[2]) < 100 else Silence()

    flags = ("--quiet", "--json", "--drain-timeout", "0.2", "--processes", processes)
    with (
        served(half) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, *flags) as child,
    ):
        while len(server.calls) < 120:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGHUP)
        done = ended(child)
    assert done.code == 129, done
    assert done.json.items() >= {"status": "stopped", "reason": "SIGHUP", "exit_code": 129}.items()
    assert shell.manifest()["status"] == "stopped"


def test_p12_under_nohup_the_end_of_the_session_is_not_heard(shell: Shell) -> None:
    shell.rows(60)
    prefix = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    with (
        served(answer) as server,
        shell.started(
            "run", "job.py", "--base-url", server.base_url, "--rpm", "1200", "--json", prefix=prefix
        ) as child,
    ):
        while len(server.calls) < 5:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGHUP)
        done = ended(child)
    assert (done.code, done.json["ok"]) == (0, 60)


def test_a_stream_that_stands_in_for_the_real_one_stays() -> None:
    with redirect_stdout(io.StringIO()) as stand_in, redirect_stderr(io.StringIO()):
        streams.secure()
        assert sys.stdout is stand_in
        assert streams.result_lost() is None
        assert not streams.reader_gone()
