"""The benchmarks' own arithmetic, and that each of them still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.canned import CannedLatency
from tests.benchmarks.figures import FigureTarget, Line, percentile, short, stalls, table
from tests.benchmarks.in_flight import Load
from tests.benchmarks.results import Machine, Results, record
from tests.benchmarks.tail import Slow

POSITIVE = st.floats(1e-3, 1e6)


@given(POSITIVE, POSITIVE)
def test_a_ratio_is_ours_to_the_baselines(ours: float, baseline: float) -> None:
    assert Line("x", "us", ours, baseline).ratio == ours / baseline


def test_without_a_baseline_there_is_no_ratio_and_without_a_target_nothing_to_meet() -> None:
    line = Line("x", "us", 3.0)
    assert (line.ratio, line.met) == (None, None)
    assert line.cells() == ("x, us", "3.00", "-", "-", "-", "-")


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (FigureTarget("<=", 2.0, of_ratio=True), True),
        (FigureTarget("<", 2.0, of_ratio=True), False),
        (FigureTarget(">=", 0.75, of_ratio=True), True),
        (FigureTarget("<", 10.0), False),
        (FigureTarget("<=", 10.0), True),
        (FigureTarget(">", 9.0), True),
    ],
    ids=str,
)
def test_a_target_bounds_the_figure_or_its_ratio(target: FigureTarget, met: bool) -> None:  # noqa: FBT001 - a table
    assert Line("x", "us", 10.0, 5.0, target).met is met


def test_a_target_for_a_ratio_without_a_baseline_is_missed() -> None:
    assert Line("x", "us", 1.0, None, FigureTarget("<=", 9.0, of_ratio=True)).met is False


@given(st.lists(POSITIVE, min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_its_share_does_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) * (1 - 1e-9)
    assert sum(value < found for value in values) <= share * len(values)


def test_percentiles_of_a_hundred_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]


def test_a_stall_weighs_as_much_as_it_lasts() -> None:
    """One gap of a second among a thousand of a millisecond is half of the time."""
    gaps = [0.001] * 1000 + [1.0]
    assert (percentile(gaps, 0.99), stalls(gaps, 0.99), stalls(gaps, 0.25)) == (0.001, 1.0, 0.001)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.00123, "0.00123"), (1.0, "1.00"), (99.95, "100.0"), (12345.6, "12346")]
)
def test_a_figure_is_written_with_three_digits_that_count(value: float, text: str) -> None:
    assert short(value) == text


def test_the_table_has_a_row_a_line_and_columns_of_one_width() -> None:
    lines = [Line("one", "us", 10.0, 5.0, FigureTarget("<=", 1.0, of_ratio=True)), Line("another, longer", "MB", 1.0)]
    rows = table(lines).splitlines()
    assert len({len(row) for row in rows}) == 1
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["name", "ours", "baseline", "ratio", "target", "met"]
    assert cells[2] == ["one, us", "10.0", "5.00", "2.00", "ratio <= 1", "NO"]


def test_littles_law_says_how_long_rows_take() -> None:
    assert Load(15_000, 5000, CannedLatency(10.0)).ideal_s == 30.0


def test_the_ideal_time_never_leaves_a_place_empty() -> None:
    assert Slow([4.0, 1.0, 1.0, 1.0, 1.0]).ideal_s(2) == 4.0
    assert Slow([1.0, 1.0, 4.0]).ideal_s(2) == 5.0


def test_results_are_recorded_with_their_machine_the_latest_first(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    machine = Machine("a processor", 2, 0.5, "3.11.7")
    for number in (1, 2):
        line = Line("x", "us", float(number))
        record(Results(machine, (line,), date=f"day {number}", commit=f"commit-{number}"), file)
    text = file.read_text()
    assert text.count("# Results\n") == 1
    assert text.index("## day 2, commit-2") < text.index("## day 1, commit-1")
    assert "2 cores, a processor, load 0.5, Python 3.11.7" in text


def test_benchmarks_are_chosen_by_name_and_leave_a_file(tmp_path: Path) -> None:
    """Those that take no longer than a moment; `.ci/run` runs the others."""
    names = ["engine", "journal", "source", "schema"]
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tests.benchmarks", *names, "--rows", "2000", "--output", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())["figures"]
    assert {figure["name"].partition(":")[0].split(" ")[0] for figure in figures} == set(names)
    assert all(figure["ours"] > 0 for figure in figures)
    assert done.stdout.startswith("| name ")


def test_an_unknown_benchmark_is_refused_with_the_names_of_all() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "end_to_end" in done.stderr
