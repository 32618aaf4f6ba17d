"""A survey says how far it is, reads several files at once, and shows it where somebody looks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.progress import stage
from pipeline.cli.survey_progress import LINE_EVERY_S, SurveyDisplay
from pipeline.faults import UsageError
from pipeline.source import SurveyProgress, discover, survey
from pipeline.source.files import several_at_once
from pipeline.source.survey import ChunkRows
from pipeline.source.text_records import survey_text

GB = 10**9


def write_rows(path: Path, rows: int, length: int = 10) -> Path:
    path.write_text("".join(json.dumps({"n": n, "text": "x" * length}) + "\n" for n in range(rows)))
    return path


def halfway() -> SurveyProgress:
    return SurveyProgress(all_files=12, all_bytes=5 * GB, files=4, bytes=2 * GB, rows=6_000_000)


@pytest.mark.parametrize("limit", [None, 5])
def test_at_the_end_everything_was_counted(tmp_path: Path, limit: int | None) -> None:
    sizes = [write_rows(tmp_path / f"{n}.jsonl", 10).stat().st_size for n in range(3)]
    progress = SurveyProgress()
    survey(tmp_path, limit=limit, progress=progress)
    assert progress == SurveyProgress(3, sum(sizes), 3, sum(sizes), limit or 30)


def test_files_of_parquet_are_counted_with_their_bytes(tmp_path: Path) -> None:
    for number in range(9):
        pq.write_table(pa.table({"n": range(number)}), tmp_path / f"{number}.parquet")
    progress = SurveyProgress()
    found = survey(tmp_path, progress=progress)
    size = sum(file.size for file in found.files)
    assert progress == SurveyProgress(9, size, 9, size, 36)
    assert [file.rows for file in found.files] == [*range(9)]


def test_input_that_is_read_twice_is_counted_once(tmp_path: Path) -> None:
    """Larger rows late in a file make the chunks smaller, and everything is read again."""
    with write_rows(tmp_path / "a.jsonl", 1000).open("a") as file:
        file.writelines(json.dumps({"n": n, "text": "y" * 1000}) + "\n" for n in range(100))
    progress = SurveyProgress()
    found = survey_text(discover(tmp_path), ChunkRows(lambda _: 400, max_bytes=20_000), None, progress=progress)
    assert found.chunk_rows < 100
    assert (progress.bytes, progress.rows, progress.files) == (progress.all_bytes, 1100, 1)


def test_of_several_files_the_first_that_is_damaged_is_named(tmp_path: Path) -> None:
    for number in range(40):
        pq.write_table(pa.table({"n": [number]}), tmp_path / f"{number:02}.parquet")
    for number in (11, 12, 30):
        (tmp_path / f"{number}.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UsageError, match=r"11\.parquet"):
        survey(tmp_path)


def test_results_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    for number in range(20):
        write_rows(tmp_path / f"{number:02}.jsonl", 1)
    files = discover(tmp_path).files
    assert [*several_at_once(lambda found, more: (found, more), files, range(20))] == [
        *zip(files, range(20), strict=True)
    ]


def test_nothing_is_shown_of_a_survey_that_is_not_needed(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    for show in (shown.append, None):
        SurveyDisplay("reading the input", SurveyProgress(), 0.0, show, 80).update(LINE_EVERY_S)
    assert (shown, capsys.readouterr().err) == ([], "")


@pytest.mark.parametrize("width", [60, 79, 100, 140])
def test_a_terminal_shows_a_bar_that_fits_it(width: int) -> None:
    shown: list[str] = []
    progress = halfway()
    display = SurveyDisplay("reading the input", progress, 0.0, shown.append, width)
    progress.bytes = 0
    display.update(0.5)
    progress.bytes = 2 * GB
    display.update(10.0)
    assert re.match(r"reading the input +0%\|", shown[0])
    assert re.match(r"reading the input +40%\|█+", shown[1])
    assert "0:10<0:1" in shown[1]
    assert [len(line) <= width for line in shown] == [True, True]
    whole = "2 GB of 5 GB, 4 of 12 files, 6,000,000 rows [0:10<0:15, 200 MB/s]"
    assert (whole in shown[1]) == (width >= 100)


def test_a_log_has_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    progress = halfway()
    display = SurveyDisplay("reading the input", progress, 0.0, None, 79)
    for tenths in range(0, 210, 5):
        display.update(tenths / 10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    expected = "reading the input: 40 %, 2 GB of 5 GB, 4 of 12 files, 6,000,000 rows, 200 MB/s, 0:15 left"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ " + re.escape(expected), lines[0])


def test_of_objects_that_are_not_read_to_their_ends_files_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    display = SurveyDisplay("reading", SurveyProgress(all_files=2000, files=500, rows=70), 0.0, None, 79)
    display.update(10.0)
    assert "reading: 25 %, 500 of 2,000 files, 70 rows, 50 files/s, 0:30 left" in capsys.readouterr().err


def test_a_stage_that_is_quiet_or_has_nothing_to_tell_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with stage("reading", quiet=quiet, reading=SurveyProgress()):
            pass
    assert capsys.readouterr().err == ""
