"""A baseline's text: read back as it was written, and the same whenever nothing changed."""

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.baseline import Baseline, from_text, to_text
from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.faults import UsageError

shares = st.integers(0, 10).map(lambda tenths: tenths / 10)
texts = st.text(max_size=8)
counts = st.builds(VerdictCounts, shares, shares, shares, shares, shares, shares, shares, shares)
scored = st.builds(
    Scored,
    row=texts,
    correct=shares,
    fields=st.dictionaries(texts, counts, max_size=3),
    slices=st.dictionaries(texts, texts, max_size=2),
    cluster=st.none() | texts.filter(bool),
    failed=shares,
    flaky=st.booleans(),
    cost_usd=st.none() | st.integers(0, 10**6).map(lambda millionths: millionths / 10**6),
    latency_s=st.none() | st.floats(0, 100),
)
rows = st.lists(scored, max_size=5, unique_by=lambda row: row.row)


def baseline_of(kept: list[Scored]) -> Baseline:
    return Baseline(
        evaluation="events",
        model="google/m",
        version="1.0",
        simulated=True,
        repeats=1,
        job={"prompt": "a1"},
        graders={"name": "b2"},
        data={row.row: "c3" for row in kept},
        rows=tuple(kept),
        noise=0.25,
        flaky=("r1", "r2"),
        measures={"row_correct": 0.5},
    )


@given(rows)
def test_what_is_written_is_what_is_read(kept: list[Scored]) -> None:
    """But for latencies, which differ from run to run: they are left out unless they are asked for."""
    baseline = baseline_of(sorted(kept, key=lambda row: row.row))
    untimed = replace(baseline, rows=tuple(replace(row, latency_s=None) for row in baseline.rows))
    assert from_text(to_text(baseline)) == untimed
    assert from_text(to_text(baseline, timed=True)) == baseline


@given(rows, st.randoms(use_true_random=False))
def test_the_text_does_not_depend_on_the_order_of_the_rows(kept: list[Scored], random: Random) -> None:
    shuffled = list(kept)
    random.shuffle(shuffled)
    assert to_text(baseline_of(shuffled)) == to_text(baseline_of(kept))


@given(rows)
def test_every_row_has_a_line_of_its_own(kept: list[Scored]) -> None:
    """So that a diff shows which rows changed."""
    lines = to_text(baseline_of(kept)).split("\n")
    for row in kept:
        assert sum(line.startswith(f"  {json.dumps(row.row, ensure_ascii=False)}: ") for line in lines) == 1


def test_latencies_are_not_kept() -> None:
    """They differ from run to run without a reason."""
    row = Scored("r", 1.0, {}, latency_s=1.5)
    assert from_text(to_text(baseline_of([row]))).rows[0].latency_s is None


def test_a_cost_of_nothing_is_not_an_unknown_cost() -> None:
    kept = [Scored("free", 1.0, {}, cost_usd=0.0), Scored("unknown", 1.0, {})]
    assert [row.cost_usd for row in from_text(to_text(baseline_of(kept))).rows] == [0.0, None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a baseline"),
        ("[]", "not a baseline"),
        ("{}", "not a baseline"),
        ('{"format": 99}', "format 99, not 1"),
        ('{"format": 1, "rows": {"a": {}}}', "not a baseline"),
        ('{"format": 1, "rows": 3}', "not a baseline"),
    ],
)
def test_what_is_no_baseline_is_told(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        from_text(text)
