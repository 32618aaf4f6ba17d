"""Every line of the matrix of faults has its tests, and a line whose tests were only skipped fails the session."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import LIST, TESTS, lines_in, numbers_in, proofs_in, unproven

LINES = lines_in(LIST.read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_matrix_has_a_test_that_carries_its_number(line: str) -> None:
    assert line in proofs_in(TESTS)


def test_a_test_carries_no_number_that_is_not_in_the_matrix() -> None:
    assert proofs_in(TESTS).keys() <= set(LINES)


def test_the_matrix_has_each_line_once() -> None:
    assert len(LINES) == len(set(LINES)) == 43


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("test_p1_kill_9_at_any_moment", ["P1"]),
        ("test_h7_h8_any_json", ["H7", "H8"]),
        ("test_p10_of_files", ["P10"]),
        ("test_200_asks_at_once", []),
        ("test_every_p1_counts", []),
    ],
)
def test_a_name_begins_with_the_numbers_that_it_carries(name: str, numbers: list[str]) -> None:
    assert numbers_in(name) == numbers


def test_a_line_is_proven_by_one_test_that_passed_and_open_while_one_was_not_run() -> None:
    tests = {"P1": {"a", "b"}, "P2": {"c"}, "P3": {"b", "d"}}
    assert unproven(tests, {"a": {"passed"}, "b": {"skipped"}, "c": {"skipped"}}) == ["P2"]
    assert unproven(tests, {"c": {"passed", "failed"}, "a": {"skipped"}, "b": {"skipped"}}) == ["P1"]


SKIPS = "import pytest\n\ndef test_p5_is_proven():\n    pytest.skip('not here')\n"
PASSES = SKIPS.replace("pytest.skip('not here')", "pass")


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "with a worker"])
@pytest.mark.parametrize(("source", "code"), [(SKIPS, 1), (PASSES, 0)], ids=["skipped", "passed"])
def test_a_session_in_which_a_line_was_only_skipped_fails(
    source: str, code: int, workers: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    for name in ("__init__.py", "conftest.py", "matrix.py"):
        shutil.copy(TESTS / name, folder)
    (folder / "test_some.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done
    assert ("P5 of tests/faults.md is not proven" in done.stdout) == bool(code)
