"""The geometry of charts: axes that suit their values, limits that do not flatten them, lines without stripes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.charts import BOTTOM, BRIDGED, HEIGHT, TOP, Chart, charts_of
from pipeline.report.evaluation import HEAT, short_of
from pipeline.report.timeline import Point, Timeline
from pipeline.text.figures import short_number


def chart(title: str, *points: Point) -> Chart:
    return next(one for one in charts_of(Timeline(points, float(len(points)))) if one.title == title)


def asked(at: int, requests: float, limit: float | None = None) -> Point:
    return Point(float(at), 1.0, {"ok": 0.0, "failed": 0.0, "requests": requests}, limit=limit)


def heights(path: str) -> list[float]:
    return [float(pair.split(",")[1]) for pair in path.removeprefix("M").replace("M", "L").split("L")]


def test_an_axis_of_zeros_has_the_marks_0_and_1() -> None:
    for title in ("Throughput", "Errors"):
        assert [tick.text for tick in chart(title, asked(0, 5), asked(1, 5)).y_ticks] == ["0", "1"]


@given(st.floats(1.0, 1e4), st.floats(0.0, 1e18))
def test_a_limit_leaves_the_requests_half_of_the_height_and_says_how_high_it_goes(rate: float, limit: float) -> None:
    found = chart("Requests and limit", asked(0, rate, limit), asked(1, rate, limit))
    requests, limits = found.lines
    height = HEIGHT - TOP - BOTTOM
    assert HEIGHT - BOTTOM - heights(requests.path)[0] >= height / 5
    assert min(heights(limits.path)) >= TOP - 0.1
    assert all(len(tick.text) <= 6 for tick in found.y_ticks)
    assert not limits.note or limit > 2 * rate


def test_a_limit_far_above_the_requests_is_told_beside_its_name_and_as_it_is_under_the_pointer() -> None:
    found = chart("Requests and limit", asked(0, 20, 4.5e15), asked(1, 20, 30))
    assert found.lines[1].note == "up to 4.5e15"
    assert "limit 4.5e15" in found.hits[0].text
    assert [tick.text for tick in found.y_ticks] == ["0", "10", "20", "30", "40"]


def test_a_limit_alone_has_a_chart_of_its_own_height() -> None:
    points = [Point(float(at), 1.0, {"requests": None}, limit=80.0) for at in range(2)]
    assert [tick.text for tick in chart("Requests and limit", *points).y_ticks][-1] == "80"


@pytest.mark.parametrize(("missing", "pieces"), [(1, 1), (BRIDGED, 1), (BRIDGED + 1, 2)])
def test_a_line_goes_on_over_a_moment_without_answers_and_not_over_a_pause(missing: int, pieces: int) -> None:
    latencies = [0.1, 0.1, *[None] * missing, 0.2, 0.2]
    points = [Point(float(at), 1.0, {"ok": 1.0, "failed": 0.0}, latency_p50=each) for at, each in enumerate(latencies)]
    assert chart("Latency", *points).lines[0].path.count("M") == pieces


def test_a_point_is_drawn_in_the_middle_of_its_stretch() -> None:
    found = chart("Throughput", asked(0, 1), asked(1, 1))
    (first, _), (second, _) = (hit.text.split(": ") for hit in found.hits)
    assert (first, second) == ("0.5 s", "1.5 s")


def test_shades_tell_shares_between_85_and_100_percent_apart() -> None:
    shares = (1.0, 0.995, 0.98, 0.96, 0.92, 0.85)
    assert [short_of(share) for share in shares] == [0, 1, 2, 3, 4, 5]
    assert (short_of(0.9999), short_of(0.0)) == (0, HEAT)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_lower_share_is_never_of_a_lighter_shade(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert HEAT >= short_of(low) >= short_of(high) >= 0


def test_numbers_that_no_prefix_suits_are_powers_of_ten() -> None:
    assert [short_number(each) for each in (9.99e11, 1e12, 3.8e13)] == ["999G", "1e12", "3.8e13"]
