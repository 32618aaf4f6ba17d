"""What may be compared with what, and what is said of it; what stale files may not do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.assessment import (
    Reference,
    comparable_rows,
    only,
    read_scores,
    require_finished,
    with_noise,
    write_noise,
)
from pipeline.evaluation.baseline import Baseline
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.faults import NothingToDo, UsageError

RIGHT = {"name": VerdictCounts(1.0, 1.0, match=1)}
DATA = {"a": "1", "b": "2", "c": "3"}


def scores_of(data: Mapping[str, str] = DATA, *, wrong: str = "") -> Baseline:
    rows = tuple(Scored(row, float(row not in wrong), RIGHT) for row in data)
    fixed: dict[str, Any] = {"evaluation": "e", "model": "m", "version": "1", "simulated": False, "repeats": 1}
    return Baseline(**fixed, job={"prompt": "p", "model": "m"}, graders={"name": "g"}, data=data, rows=rows)


def compared(before: Baseline, now: Baseline, *, common: bool = False) -> tuple[list[str], list[str]]:
    rows, notes = comparable_rows(Reference(of="B", scores=before, common_only=common), now)
    return [row.row for row in rows], notes


def test_what_is_the_same_is_compared_without_a_word() -> None:
    assert compared(scores_of(), scores_of()) == (["a", "b", "c"], [])


@pytest.mark.parametrize("common", [False, True])
def test_emulated_and_real_answers_are_never_compared(common: bool) -> None:  # noqa: FBT001 - a parameter of the test
    with pytest.raises(UsageError, match="the emulator's answers, this run has not"):
        compared(replace(scores_of(), simulated=True), scores_of(), common=common)


UNLIKE = {
    "changed": (scores_of(DATA | {"b": "new"}), r"1 rows of the gold data were changed \(b\)", ["a", "c"]),
    "added": (scores_of(DATA | {"d": "4"}), r"1 rows are new \(d\)", ["a", "b", "c"]),
    "graders": (replace(scores_of(), graders={"name": "h"}), "graded differently: name", ["a", "b", "c"]),
    "fewer graders": (replace(scores_of(), graders={}), "graded differently: name", ["a", "b", "c"]),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_is_unlike_is_refused_unless_the_common_rows_are_asked_for(what: str) -> None:
    now, told, rows = UNLIKE[what]
    with pytest.raises(UsageError, match=told):
        compared(scores_of(), now)
    left, (note,) = compared(scores_of(), now, common=True)
    assert left == rows
    assert note.startswith("compared with B on the common rows only")


def test_nothing_in_common_is_told_before_anything_is_asked() -> None:
    with pytest.raises(NothingToDo, match="no row is the same"):
        compared(scores_of(), scores_of(dict.fromkeys(DATA, "new")), common=True)


def test_rows_that_are_gone_are_told_and_fail() -> None:
    now = scores_of({"a": "1", "b": "2"})
    rows, notes = compared(scores_of(), now)
    assert notes == ["1 rows of B are missing: they count as failed"]
    assert rows == ["a", "b", "c"]


def test_what_changed_in_the_job_is_told() -> None:
    now = replace(scores_of(), job={"prompt": "q", "model": "m"})
    assert compared(scores_of(), now)[1] == ["changed in the job since B: prompt"]


def test_the_scores_of_some_rows_alone() -> None:
    some = only(scores_of(wrong="c"), {"a", "c", "x"})
    assert ([row.row for row in some.rows], some.data) == (["a", "c"], {"a": "1", "c": "3"})


def test_the_noise_floor_holds_for_the_same_job_and_graders_only(tmp_path: Path) -> None:
    scores = scores_of()
    write_noise(tmp_path, compare(scores.rows, scores_of(wrong="b").rows), scores)
    assert with_noise(scores, tmp_path).noise == pytest.approx(1 / 3)
    assert with_noise(scores, tmp_path).flaky == ("b",)
    for other in (replace(scores, job={"prompt": "q"}), replace(scores, graders={"name": "h"})):
        assert with_noise(other, tmp_path).noise is None


@pytest.mark.parametrize(("status", "finished"), [("complete", True), ("failed", True), ("stopped", False)])
def test_a_run_is_finished_when_no_row_is_left_in_any_repeat(tmp_path: Path, status: str, finished: bool) -> None:  # noqa: FBT001 - a parameter of the test
    repeat = tmp_path / "_repeats" / "001"
    repeat.mkdir(parents=True)
    for folder, said in ((tmp_path, "complete"), (repeat, status)):
        (folder / "_manifest.json").write_text(json.dumps({"status": said, "rows": 1, "ok": 1, "failed": 0}))
        (folder / "_SUCCESS").touch()
    if finished:
        require_finished(tmp_path)
        with pytest.raises(UsageError, match="run `pipeline eval` first"):
            read_scores(tmp_path)
    else:
        with pytest.raises(UsageError, match="is not finished"):
            read_scores(tmp_path)
