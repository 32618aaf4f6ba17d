"""Repeats become scores, scores become tables, graded rows go to disk and come back the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.evaluation import Enum, Function, Items, Number, Object, Text
from pipeline.evaluation.fingerprints import fingerprints
from pipeline.evaluation.graders.rows import Gold, Graders, RowAnswer, grade_row
from pipeline.evaluation.graders.verdicts import Graded, Leaf, Verdict, VerdictCounts
from pipeline.evaluation.reducers import Flaky, by_row, consistency, flaky, reducer_of, scored
from pipeline.evaluation.results import LEAVES, ROWS, read, write
from pipeline.evaluation.stats.tables import confusions, tables
from pipeline.faults import UsageError
from pipeline.storage.durable import FileSystem
from tests.test_grade_scalars import JSON

GRADERS = Graders({"kind": Enum(("a", "b")), "items": Items(fields={"n": Number(), "kind": Enum()}, key="n")})


def graded(row: str, *answers: Any, expected: Any = None, **more: Any) -> list[Graded]:
    gold = Gold(row, expected or {"kind": "a", "items": []}, **more)
    made = [RowAnswer(fault="Truncated") if answer is None else RowAnswer(answer) for answer in answers]
    return [grade_row(GRADERS, gold, dataclasses.replace(each, repeat=n)) for n, each in enumerate(made)]


RIGHT: Mapping[str, Any] = {"kind": "a", "items": []}
WRONG: Mapping[str, Any] = {"kind": "b", "items": [{"n": 1}]}


# Repeats.


@pytest.mark.parametrize(
    ("name", "correct"),
    [
        ("mean", 2 / 3), ("majority", 1), ("any", 1), ("all", 0), ("at_least_2", 1), ("at_least_3", 0),
        ("pass_at_1", 2 / 3), ("pass_at_2", 1), ("pass_hat_2", 1 / 3), ("pass_hat_3", 0),
    ],
)  # fmt: skip
def test_repeats_are_reduced_as_the_name_says(name: str, correct: float) -> None:
    (row,) = scored(graded("r", RIGHT, WRONG, RIGHT), reducer_of(name))
    assert row.correct == pytest.approx(correct)
    assert (row.flaky, row.repeats, row.repeats_right) == (True, 3, 2)


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.data())
def test_pass_at_k_and_pass_hat_k_are_the_shares_of_all_choices_of_k_repeats(right: list[bool], data: Any) -> None:
    k = data.draw(st.integers(1, len(right)))
    chosen = list(combinations(right, k))
    assert reducer_of(f"pass_at_{k}")(right) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    assert reducer_of(f"pass_hat_{k}")(right) == pytest.approx(sum(map(all, chosen)) / len(chosen))


@pytest.mark.parametrize("name", ["median", "pass_at_0", "pass_at_x", "at_least_"])
def test_a_reducer_that_there_is_not_is_a_misuse(name: str) -> None:
    with pytest.raises(UsageError, match=r"no reducer .* \(known: mean, majority"):
        reducer_of(name)


def test_more_repeats_than_there_are_is_a_misuse() -> None:
    with pytest.raises(UsageError, match="give the evaluation at least 4 repeats"):
        scored(graded("r", RIGHT, RIGHT), reducer_of("pass_at_4"))


def test_counts_are_means_over_the_repeats_of_their_row() -> None:
    """A row with many repeats weighs no more than one with a single repeat."""
    rows = scored([*graded("many", RIGHT, WRONG, None, WRONG), *graded("one", RIGHT)])
    assert rows[0].fields["kind"] == VerdictCounts(right=0.25, score=0.25, match=0.25, wrong=0.5, failed=0.25)
    assert rows[0].fields["items"] == VerdictCounts(right=0.25, score=0.25, invented=0.5, empty=0.25, failed=0.25)
    assert (rows[0].correct, rows[0].failed, rows[1].correct) == (0.25, 0.25, 1.0)


def test_an_unknown_cost_is_not_free() -> None:
    row = graded("r", RIGHT, RIGHT)
    known = [dataclasses.replace(each, cost_usd=0.25, latency_s=each.repeat + 1.0) for each in row]
    assert [(each.cost_usd, each.latency_s) for each in scored(known)] == [(0.5, 1.5)]
    assert [each.cost_usd for each in scored([known[0], row[1]])] == [None]


def test_rows_of_the_same_name_are_a_misuse() -> None:
    with pytest.raises(UsageError, match="two rows of the gold data are named 'r'"):
        by_row([*graded("r", RIGHT), *graded("r", WRONG)])


def test_flaky_rows_say_how_they_flipped_and_in_which_fields() -> None:
    rows = [
        *graded("same", WRONG, WRONG),
        *graded("flips", RIGHT, {"kind": "b"}, RIGHT),
        *graded("steady", RIGHT, RIGHT),
    ]
    assert flaky(rows) == [Flaky("flips", (True, False, True), ("kind",))]


def test_consistency_is_how_often_two_repeats_give_the_same_values() -> None:
    two = {"kind": "b", "items": [{"n": 1}, {"n": 2}]}
    swapped = {"kind": "b", "items": [{"n": 2}, {"n": 1}]}
    assert consistency([*graded("r", two, swapped), *graded("s", two, None), *graded("once", two)]) == {
        "kind": 0.5,
        "items": 0.5,
    }


# Tables.


def test_slices_with_too_few_rows_are_named_and_not_told() -> None:
    rows = [each for n in range(12) for each in graded(f"r{n}", RIGHT, slices={"language": "de" if n else "fr"})]
    found = tables(scored(rows), least=2)
    assert [(table.column, table.value, table.rows) for table in found.slices] == [("language", "de", 11)]
    assert [dataclasses.astuple(each) for each in found.suppressed] == [("language", "fr", 1)]
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_table_has_the_figures_of_every_field() -> None:
    answers: list[Any] = [RIGHT, WRONG, {}, None]
    whole = tables(scored([each for n, answer in enumerate(answers) for each in graded(f"r{n}", answer)])).whole
    kind, items = whole.fields
    assert {name: each.value for name, each in whole.measures.items()} == pytest.approx(
        {
            "row_correct": 1 / 4, "schema_valid": 3 / 4, "failed": 1 / 4, "accuracy": 3 / 8, "precision": 1 / 3,
            "recall": 1 / 5, "f1": 1 / 4, "f1_macro": 1 / 6,
        }
    )  # fmt: skip
    assert kind.counts == {"match": 1, "wrong": 1, "missed": 1, "invented": 0, "empty": 0, "failed": 1}
    assert (kind.null, items.null) == (1 / 3, 2 / 3)
    assert (kind.invented_where_empty, items.invented_where_empty) == (None, 1 / 3)
    assert whole.accuracy_macro == pytest.approx((1 / 4 + 2 / 4) / 2)


def test_an_enum_has_a_confusion_matrix_with_nothing_and_failure() -> None:
    expected = {"kind": "a", "items": [{"n": 1, "kind": "x"}]}
    answers = [{"kind": "b", "items": [{"n": 1, "kind": "y"}]}, {"kind": "c"}, {}, None]
    kind, of_items = confusions(GRADERS, graded("r", *answers, expected=expected))
    assert (kind.path, kind.expected, kind.got) == ("kind", ("a", "b"), ("a", "b", "c", "(none)", "(failed)"))
    assert kind.counts == ((0, 1, 1, 1, 1), (0, 0, 0, 0, 0))
    assert (of_items.path, of_items.expected, of_items.got) == ("items[].kind", ("x",), ("y", "(none)", "(failed)"))
    assert of_items.counts == ((1, 2, 1),)


# On disk.

INDEX = st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SCORES = st.floats(0, 1)
FINITE = JSON.filter(lambda value: "nan" not in repr(value))
LEAF = st.builds(
    Leaf,
    NAMES,
    st.sampled_from(Verdict),
    FINITE,
    FINITE,
    SCORES,
    st.none() | NAMES,
    expected_index=INDEX,
    got_index=INDEX,
)
GRADED = st.builds(
    Graded,
    row=NAMES,
    repeat=st.integers(0, 9),
    correct=st.booleans(),
    fields=st.dictionaries(NAMES, st.lists(LEAF, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3),
    slices=st.dictionaries(NAMES, NAMES, max_size=2),
    cluster=st.none() | NAMES,
    fault=st.none() | NAMES,
    cost_usd=st.none() | SCORES,
    latency_s=st.none() | SCORES,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(GRADED, max_size=4, unique_by=lambda each: (each.row, each.repeat)))
def test_what_is_written_is_read_back_the_same(tmp_path: Path, rows: list[Graded]) -> None:
    write(tmp_path, rows)
    assert list(read(tmp_path)) == rows


def test_any_query_over_leaves_is_one_of_duckdb(tmp_path: Path) -> None:
    expected = {"kind": "a", "items": [{"n": 1, "kind": "ü"}, {"n": 2, "kind": "y"}]}
    got = {"kind": "a", "items": [{"n": 2, "kind": "z"}, {"n": 1, "kind": "ü"}]}
    write(tmp_path, graded("r", got, expected=expected, slices={"language": "de"}))
    leaves, rows = (duckdb.read_parquet(str(tmp_path / name)) for name in (LEAVES, ROWS))
    found = duckdb.execute(
        """
        select path, expected, got, verdict, expected_index, got_index, leaves.slices['language']
        from leaves join rows using (row, repeat) where not correct and verdict = 'wrong'
        """
    ).fetchall()
    assert (leaves.shape[0], rows.shape[0]) == (5, 1)
    assert found == [("items[].kind", '"y"', '"z"', "wrong", [1], [0], "de")]


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    row = Graded("r", 0, correct=False, fields={"a": (Leaf("a", Verdict.wrong, "\ud800", "x"),)})
    write(tmp_path, [row])
    assert list(read(tmp_path)) == [row]


def test_tables_of_different_runs_are_not_read_as_one(tmp_path: Path) -> None:
    write(tmp_path, graded("r", RIGHT))
    kept = (tmp_path / ROWS).read_bytes()
    write(tmp_path, graded("s", RIGHT))
    (tmp_path / ROWS).write_bytes(kept)
    with pytest.raises(UsageError, match="are not of the same run"):
        list(read(tmp_path))
    with pytest.raises(UsageError, match="grade the run first"):
        list(read(tmp_path / "nowhere"))


def test_a_table_that_cannot_be_written_whole_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, graded("r", RIGHT))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, graded("s", RIGHT), FileSystem(write=full))
    assert [each.row for each in read(tmp_path)] == ["r"]


# Fingerprints.


def test_a_fingerprint_changes_with_everything_that_grades() -> None:
    def close(expected: Any, got: Any) -> bool:
        return bool(expected == got)

    def closer(expected: Any, got: Any) -> bool:
        return expected is got

    graders = [
        Text(), Text(at_least=0.8), Text(nothing="null"), Items(fields={"a": Text()}), Items(fields={"a": Number()}),
        Object({"a": Text()}), Function(close), Function(closer), Function(lambda e, g: e == g),
        Enum(("a",)), Enum(("b",)),
    ]  # fmt: skip
    found = [fingerprints(Graders({"field": each}))["field"] for each in graders]
    assert len(set(found)) == len(found)
    assert fingerprints(Graders({"field": Function(close)})) == {"field": found[6]}


def test_functions_without_source_that_differ_in_a_text_have_other_fingerprints() -> None:
    """As of a notebook: their instructions are the same."""
    made = [eval(f"lambda expected, got: got == {text!r}") for text in ("a", "b")]  # noqa: S307 - our own text
    found = [fingerprints(Graders({"field": Function(each)}))["field"] for each in made]
    assert found[0] != found[1]
