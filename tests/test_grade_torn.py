"""Where an interval and a test disagree about noise, it is said which of them decides: the test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.eval_output import report_comparison
from pipeline.evaluation.assessment import Reference
from pipeline.evaluation.comparison import MetricChange, compare
from pipeline.evaluation.decisions import decide
from pipeline.evaluation.gates import NoWorse
from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.report.markdown import markdown_summary
from tests.assessments import BROKEN, GOLD, assessed

DECIDES = "which decides whether it is noise"


def rows(right: list[bool]) -> list[Scored]:
    return [
        Scored(f"r{n:03d}", float(each), {"a": VerdictCounts(right=float(each), score=1.0)})
        for n, each in enumerate(right)
    ]


def worse_by(broken: int, fixed: int, n: int = 80) -> tuple[list[Scored], list[Scored]]:
    before = [n >= fixed for n in range(n)]
    after = [fixed + broken <= place or place < fixed for place in range(n)]
    return rows(before), rows(after)


def test_seven_broken_and_one_fixed_have_an_interval_without_0_and_a_p_above_5_percent_and_p_decides() -> None:
    before, after = worse_by(7, 1)
    overall = compare(before, after).overall
    assert (overall.worse, overall.better) == (7, 1)
    assert overall.high < 0
    assert overall.p > 0.05
    assert overall.torn()
    decision = decide(NoWorse("row_correct"), after, baseline=before)
    assert decision.answer == "cannot tell"
    assert DECIDES in decision.message


def test_where_both_say_the_same_nothing_is_added() -> None:
    for broken, fixed in ((20, 0), (2, 1)):
        before, after = worse_by(broken, fixed)
        assert not compare(before, after).overall.torn()
        assert DECIDES not in decide(NoWorse("row_correct"), after, baseline=before).message


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.01, 0.05, 0.2]))
def test_they_disagree_exactly_when_one_excludes_no_difference_and_the_other_does_not(
    low: float, width: float, p: float, alpha: float
) -> None:
    change = MetricChange(metric="row_correct", difference=low + width / 2, low=low, high=low + width, p=p)
    excludes = not change.low <= 0 <= change.high
    assert change.torn(alpha) == (excludes != (p < alpha))


def test_nothing_to_tell_is_no_disagreement() -> None:
    assert not MetricChange(metric="row_correct", why="nothing").torn()


def test_terminal_and_markdown_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [BROKEN] * 7 + [GOLD] * 73
    earlier = [GOLD] * 7 + [BROKEN] + [GOLD] * 72
    found = assessed(answers, earlier)
    assert found.comparison is not None
    assert found.comparison.overall.torn()
    assert "p decides" in markdown_summary(found)
    report_comparison(found.comparison, Reference(of="b", scores=found.scores), found.scores, [], as_json=False)
    assert DECIDES in capsys.readouterr().out
