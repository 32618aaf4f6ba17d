"""Progress: two lines that fit the terminal, one line in a log, and nothing left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from pipeline.cli.progress_lines import NARROW, log_line, narrow_line, second_line, top_line
from pipeline.data import Failure
from pipeline.faults import Refused
from pipeline.pace import RecentRate
from pipeline.totals.counters import Counters
from tests.commands import JOB, Shell
from tests.screens import Terminal, screen
from tests.servers import Answer, Call, Held, Served, error, served
from tests.test_cli import script

PRINTS = """
from pipeline import Job


def prompt(row):
    print("asking", row["id"])
    return f"Say {row['text']}"


job = Job(name="a_job", model="google/gemini-test", input="rows.jsonl", user=prompt, max_failed=0.5)
"""

REASONS = [None, "quota", "the declared limit", "the budget", "the endpoint, which has failed for 23 s"]
TROUBLES = st.none() | st.text(min_size=1) | st.just("HTTP 503: " + "the backend is overloaded, try later " * 20)
COUNTS = st.integers(0, 10**9)


@st.composite
def tallies(draw: st.DrawFn) -> Counters:
    ok, failed, left = draw(COUNTS), draw(COUNTS), draw(COUNTS)
    return Counters(
        rows=ok + failed + left + 1,
        ok=ok,
        failed=failed,
        in_flight=draw(COUNTS),
        retrying=draw(COUNTS),
        waiting=draw(COUNTS),
        waits_for=draw(st.sampled_from(REASONS)),
        trouble=draw(TROUBLES),
        limit=draw(st.none() | st.floats(0, 1e9)),
        cache_hits=draw(COUNTS),
        cost_usd=draw(st.just(0.0) | st.floats(0, 1e9)),
        unpriced=draw(COUNTS),
    )


def rate_of(counters: Counters, seconds: float) -> RecentRate:
    rate = RecentRate(0.0, 0)
    rate.add(seconds, counters.done)
    return rate


def drawn(counters: Counters, seconds: float, width: int) -> str:
    """The first line as tqdm fills it."""
    line = top_line(counters, seconds, rate_of(counters, seconds), width)
    return str(tqdm.format_meter(counters.done, counters.rows, seconds, ncols=width, bar_format=line))


@given(tallies(), st.floats(0.5, 1e7), st.integers(NARROW - 1, 300))
def test_both_lines_fit_from_60_columns_on(counters: Counters, seconds: float, width: int) -> None:
    """A line that is too long would wrap, and every drawing leave a piece of it behind."""
    assert len(drawn(counters, seconds, width)) <= width
    assert len(second_line(counters, width)) <= width


@given(tallies(), st.integers(1, NARROW - 1))
def test_the_narrow_line_fits_any_terminal(counters: Counters, width: int) -> None:
    """However few columns there are, nothing wraps."""
    assert len(narrow_line(counters, rate_of(counters, 10.0), width)) <= width


@given(tallies(), st.integers(NARROW - 1, 300))
def test_no_word_and_no_number_is_cut(counters: Counters, width: int) -> None:
    """A count without its last digits is a wrong count: pieces are left out whole, a reason loses whole words."""
    whole = set(re.split(r"[ ,;:(]+", second_line(counters, 10**6)))
    assert set(re.split(r"[ ,;:(]+", second_line(counters, width))) <= {*whole, "..."}


@given(tallies(), st.integers(NARROW - 1, 300))
def test_the_failed_rows_are_shown_at_any_width(counters: Counters, width: int) -> None:
    """They are what makes somebody stop the run."""
    assert f"failed {counters.failed}" in second_line(counters, width)


@given(tallies(), st.integers(1, 300))
def test_colours_take_no_room_and_only_failures_are_red(counters: Counters, width: int) -> None:
    """Without its colours a line is the line without colours."""
    coloured = second_line(counters, width, coloured=True)
    assert re.sub(r"\x1b\[\d+m", "", coloured) == second_line(counters, width)
    red = re.findall(r"\x1b\[31m(.*?)\x1b\[0m", coloured)
    assert red == ([f"failed {counters.failed}"] if counters.failed and "failed" in coloured else [])


def test_what_matters_least_is_left_out_first() -> None:
    """From wide to narrow: the cache, retries, calls in flight, words of the reason, dollars, the rows that are ok."""
    counters = Counters(rows=100, ok=40, failed=2, in_flight=8, retrying=3, waiting=60, cache_hits=7, cost_usd=0.123456)
    counters.waits_for, counters.limit = "quota", 13.21
    assert second_line(counters, 200) == (
        "ok 40, failed 2, in flight 8, 3 retrying, 7 from the cache, 60 waiting for quota (13.2/s), $0.12"
    )
    assert second_line(counters, 77) == "ok 40, failed 2, in flight 8, 60 waiting for quota (13.2/s), $0.12"
    assert second_line(counters, 57) == "ok 40, failed 2, 60 waiting for quota (13.2/s), $0.12"
    assert second_line(counters, 34) == "ok 40, failed 2, 60 waiting, $0.12" or "$" in second_line(counters, 34)
    assert second_line(counters, 28) == "ok 40, failed 2, $0.12"
    assert second_line(counters, 16) == "ok 40, failed 2"
    assert second_line(counters, 9) == "failed 2"


def test_a_reason_is_cut_between_words() -> None:
    """The server's words end in three dots where there is no room for all of them."""
    counters = Counters(
        rows=9, waiting=4, waits_for="the endpoint, which has failed for 23 s", trouble="connection refused"
    )
    assert second_line(counters, 79) == "ok 0, failed 0, in flight 0, 4 waiting: connection refused"
    assert "which has failed for 23 s: connection refused" in log_line(counters, RecentRate(0, 0))
    counters.trouble = "connection refused by the server at the other end of the line, and by its proxy, too"
    assert second_line(counters, 79) == "ok 0, failed 0, 4 waiting: connection refused by the server at the other ..."


@pytest.mark.parametrize("width", range(NARROW - 1, 200))
def test_a_reason_is_never_left_out_where_there_is_room_for_some_of_it(width: int) -> None:
    """At every width some words of why nothing is answered are shown."""
    counters = Counters(rows=9, waiting=4, waits_for="the endpoint, which has failed for 23 s", cost_usd=0.5)
    counters.trouble = "connection refused by the server at the other end of the line, and by its proxy, too " * 3
    assert ", 4 waiting: connection" in second_line(counters, width)


def test_rows_of_earlier_starts_count_in_all_figures() -> None:
    """Bar, ok, failed and dollars are of the whole run, and agree with each other after a resume."""
    counters = Counters(rows=10, done_before=5, ok_before=4, ok=2, cost_before_usd=1.5, cost_usd=0.25)
    counters.count(Failure(9, Refused("no")))
    counters.failures_before += counters.failures
    assert second_line(counters, 100) == "ok 6, failed 2, in flight 0, $1.75"
    assert log_line(counters, RecentRate(0, 8)).startswith("8/10 rows (80%), 0.0 rows/s, ok 6, failed 2")


def test_the_rate_is_the_recent_one() -> None:
    """A run of 100 rows per second that now does one per second will not be done in a moment."""
    rate = RecentRate(0.0, 0)
    for second in range(1, 61):
        rate.add(float(second), 100 * second)
    assert rate.per_second == pytest.approx(100)
    for second in range(61, 121):
        rate.add(float(second), 6000 + second - 60)
    assert rate.per_second == pytest.approx(1)
    assert rate.seconds_left(60) == pytest.approx(60)


def test_a_rate_below_one_row_in_the_window_is_not_zero() -> None:
    """Slow rows have an estimate, too: the window grows until it holds ten."""
    rate = RecentRate(0.0, 0)
    for second in range(1, 2000):
        rate.add(float(second), second // 90)
    assert rate.per_second == pytest.approx(1 / 90, rel=0.15)


def test_the_percentage_says_100_only_at_the_end() -> None:
    """A row that is left is not rounded away."""
    assert "99%" in drawn(Counters(rows=1000, ok=999), 1.0, 80)
    assert "100%" in drawn(Counters(rows=1000, ok=1000), 1.0, 80)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB.replace("keep=", "max_failed=0.5, keep="))
    shell.rows(30)
    return shell


def started(shell: Shell, server: Served, *options: str, columns: int) -> Terminal:
    """A run of the job on a terminal."""
    run = ["run", "job.py", "--base-url", server.base_url, *options]
    return Terminal(run, shell.folder, shell.environment, columns=columns)


def holding(call: Call) -> Answer | Held:
    """Answers ten rows, one of them with a refusal, and holds the others."""
    if call.prompt == "Say text 3":
        return error(400)
    return script(call) if call.number < 10 else Held(script(call))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_on_a_terminal_shows_two_lines_and_leaves_one(shell: Shell, processes: str) -> None:
    """While it works there is a bar with its counts below; at its end the bar stays, and the result follows it."""
    with served(holding) as server:
        run = ["run", "job.py", "--base-url", server.base_url, "--processes", processes]
        terminal = Terminal(run, shell.folder, shell.environment, columns=100)
        terminal.until(lambda text: "starting ..." in text)
        terminal.until(lambda text: "reading the input ..." in text)
        terminal.until(lambda text: "\x1b[31mfailed 1\x1b[0m" in text and "ok 9" in text and "in flight 20" in text)
        *_, bar, counts = screen(terminal.written, 100)
        assert re.fullmatch(r" 33%\|.+\| 10/30 \[\d+:\d\d<\d+:\d\d, [\d.]+ rows/s\]", bar)
        assert len(bar) == 99
        assert counts == "ok 9, failed 1, in flight 20, cost unknown"
        server.release()
        shown = terminal.end()
    assert terminal.child.returncode == 0
    assert re.match(r"100%\|.+\| 30/30 ", shown[0])
    assert shown[1] == "dataset  out/a_job/data/"
    assert "\x1b[?25l" not in terminal.written, "the cursor is never hidden, so nothing has to bring it back"


def test_a_terminal_that_is_resized_shows_the_bar_once(shell: Shell) -> None:
    """What is drawn is cleared and drawn anew, as wide as the terminal is then, down to one line without a bar."""
    with served(holding) as server:
        terminal = started(shell, server, columns=100)
        terminal.until(lambda text: "in flight 20" in text)
        for columns in (60, 40, 120):
            terminal.resize(columns)
            terminal.until(lambda text: "\r\x1b[J" in text and text.endswith("\r"))
            terminal.until(lambda text: text.endswith("\r"))
            shown = screen(terminal.written.rpartition("\x1b[J")[2], columns)
            assert max(map(len, shown)) < columns
            if columns == 40:
                assert shown == ["33%, 10/30, failed 1"] or shown[0].startswith("33%, 10/30, failed 1, ")
            else:
                assert [shown[0].startswith(" 33%|"), shown[1].startswith("ok 9, failed 1")] == [True, True]
        server.release()
        terminal.end()
    assert terminal.child.returncode == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_p2_a_signal_leaves_the_terminal_clean(shell: Shell, signals: int) -> None:
    """Drained, or ended at once by a second one: the bar's last state stays, the cursor is on a line of its own."""
    with served(holding) as server:
        terminal = started(shell, server, "-c", "8", columns=80)
        terminal.until(lambda text: "in flight 8" in text)
        for number in range(signals):
            terminal.child.send_signal(signal.SIGTERM)
            if number == 0:
                terminal.until(lambda text: "SIGTERM: finishing 8 calls in flight, 20 s at most" in text)
        if signals == 1:
            server.release()
        shown = terminal.end()
    assert terminal.child.returncode == 143
    after = screen(terminal.written + "$ ", 80)
    assert after[-1] == "$"
    bars = [line for line in shown if "rows/s]" in line]
    assert len(bars) == 1
    assert not any(line.startswith("ok ") for line in shown)
    if signals == 2:
        assert shown[-1] == bars[0]


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, "coloured bar"),
        ({"NO_COLOR": "1"}, "bar"),
        ({"NO_COLOR": ""}, "coloured bar"),
        ({"TERM": "dumb"}, "lines"),
    ],
    ids=["plain", "NO_COLOR", "empty NO_COLOR", "dumb"],
)
def test_colours_and_bars_are_for_those_who_want_them(shell: Shell, variables: dict[str, str], shown: str) -> None:
    """NO_COLOR takes the colour away and leaves the bar; a dumb terminal gets lines, and no control sequence."""
    with served(holding) as server:
        terminal = started(Shell(shell.folder, {**shell.variables, **variables}), server, columns=80)
        terminal.until(lambda text: "failed 1" in text)
        server.release()
        terminal.end()
    assert ("\x1b[31m" in terminal.written) == (shown == "coloured bar")
    assert ("\x1b[A" in terminal.written) == (shown != "lines")
    assert bool(re.search(r"\d\d:\d\d:\d\dZ \d+/30 rows", terminal.written)) == (shown == "lines")


def test_what_a_job_prints_is_above_the_bar(shell: Shell) -> None:
    """Whole lines, in order, and the bar is still there once."""
    shell.write("job.py", PRINTS)
    with served(holding) as server:
        terminal = started(shell, server, "-c", "10", columns=80)
        terminal.until(lambda text: "ok 9" in text and text.endswith("\r"))
        *printed, bar, counts = screen(terminal.written, 80)
        server.release()
        terminal.end()
    assert printed[:10] == [f"asking {number}" for number in range(10)]
    assert (bar[:5], counts[:14]) == (" 33%|", "ok 9, failed 1")


def test_what_a_job_prints_without_a_line_end_is_there_when_the_bar_is_closed(shell: Shell) -> None:
    shell.write("job.py", PRINTS.replace('print("asking", row["id"])', 'print(row["id"], end=",")'))
    with served(script) as server:
        shown = started(shell, server, "-c", "10", columns=200).end()
    (printed,) = [line for line in shown if line.startswith("0,")]
    assert printed.split(",")[:-1] == [str(number) for number in range(30)]
    assert [line[:5] for line in shown].count("100%|") == 1


def test_a_mistake_found_while_the_input_is_read_leaves_the_error_alone(shell: Shell) -> None:
    """What was shown meanwhile is gone."""
    shell.write("job.py", JOB.replace("{{ text }}", "{{ txt }}"))
    run = ["run", "job.py", "--base-url", "http://127.0.0.1:9/v1"]
    terminal = Terminal(run, shell.folder, shell.environment, columns=200)
    (shown,) = terminal.end()
    assert terminal.child.returncode == 2
    assert shown.startswith("error: ")


def test_a_log_has_a_line_with_time_percentage_and_what_is_left(shell: Shell) -> None:
    """Off a terminal every line says when it was written, in UTC, and all that the bars say."""
    with (
        served(holding) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--json") as child,
    ):
        assert child.stderr is not None
        line = child.stderr.readline()
        while "10/30" not in line:
            line = child.stderr.readline()
        server.release()
        out, _ = child.communicate(timeout=60)
    time, _, facts = line.partition(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time)
    assert re.fullmatch(
        r"10/30 rows \(33%\), [\d.]+ rows/s, \d+:\d\d left, ok 9, failed 1, in flight \d+.*, cost unknown\n", facts
    )
    assert out.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_of_progress_is_seen_as_it_is_written(unbuffered: str) -> None:
    """Containers set PYTHONUNBUFFERED: what is written to stderr then must not wait in a buffer of ours."""
    program = (
        "import sys; from pipeline.cli.streams import secure; secure(); "
        "print('a line', file=sys.stderr); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as child:
        assert child.stderr is not None
        assert child.stdin is not None
        assert child.stderr.readline() == "a line\n"
        child.stdin.close()
