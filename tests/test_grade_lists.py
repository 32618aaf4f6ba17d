"""Lists and objects: what stands against what, and that every leaf of both sides is counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import Bool, Enum, Exact, Function, Ignore, Items, Judge, Number, Object, Ordered, Set, Text
from pipeline.evaluation.graders.alignment import Pairs, assigned, in_order
from pipeline.evaluation.graders.base import Grader, Place
from pipeline.evaluation.graders.values import ABSENT
from pipeline.evaluation.graders.verdicts import Leaf
from pipeline.faults import UsageError
from tests.test_grade_scalars import JSON

WRONG: Any = {"class": Text, "text": "sku", "number": 3}
ITEM = {"sku": Text(), "amount": Number(), "tags": Set(), "note": Object({"by": Text(), "seen": Bool()})}
NESTED = Object({"id": Exact(), "lines": Items(fields=ITEM), "kinds": Ordered(Enum()), "skipped": Ignore()})
CONTAINERS = [
    NESTED, Object({}), Object({"a": Text(nothing="absent")}, nothing="null"), Items(), Items(fields=ITEM, key="sku"),
    Items(at_least=0), Items(nothing="null"), Set(), Ordered(), Ordered(NESTED), Set(NESTED), Items(Items()),
]  # fmt: skip


def told(leaves: Iterator[Leaf]) -> list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]:
    return [(leaf.path, leaf.verdict.value, leaf.expected_index, leaf.got_index) for leaf in leaves]


def verdicts(grader: Grader, expected: Any, got: Any) -> dict[str, int]:
    return dict(Counter(leaf.verdict.value for leaf in grader.grade(expected, got)))


# Alignment against brute force.


def matchings(rows: int, columns: int) -> Iterator[Pairs]:
    for size in range(min(rows, columns) + 1):
        for chosen in combinations(range(rows), size):
            for partners in permutations(range(columns), size):
                yield list(zip(chosen, partners, strict=True))


LIKENESS = st.none() | st.sampled_from([0.5, 0.6, 0.75, 1.0]) | st.integers(0, 1000).map(lambda n: n / 1000)
TABLES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(LIKENESS, min_size=columns, max_size=columns), min_size=1, max_size=4)
)


@given(TABLES)
def test_the_assignment_is_the_best_of_all_and_of_equals_the_first_in_order(similar: list[list[float | None]]) -> None:
    rows, columns = len(similar), len(similar[0])

    def worth(pairs: Pairs) -> tuple[int, int]:
        total = sum(round((similar[i][j] or 0) * 1000) for i, j in pairs)
        return total, sum((rows - i) * (columns - j) for i, j in pairs)

    allowed = [pairs for pairs in matchings(rows, columns) if all(similar[i][j] is not None for i, j in pairs)]
    found = assigned(similar)
    assert found in allowed
    assert worth(found) == max(map(worth, allowed))


@given(st.integers(1, 6), st.integers(1, 6))
def test_among_items_that_are_all_alike_the_lowest_places_win(rows: int, columns: int) -> None:
    assert assigned([[0.7] * columns] * rows) == [(i, i) for i in range(min(rows, columns))]


@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=5))
def test_the_order_is_kept_along_a_longest_common_subsequence(one: list[str], other: list[str]) -> None:
    pairs = in_order(len(one), len(other), lambda i, j: one[i] == other[j])
    assert all(a < c and b < d for (a, b), (c, d) in pairwise(pairs))
    agreed = sum(one[i] == other[j] for i, j in pairs)
    common = {sub for size in range(len(one) + 1) for sub in combinations(one, size)}
    assert agreed >= max(
        len(sub) for size in range(len(other) + 1) for sub in combinations(other, size) if sub in common
    )


# The laws of leaves.


@pytest.mark.parametrize("grader", CONTAINERS, ids=range(len(CONTAINERS)))
@given(expected=JSON | st.just(ABSENT), got=JSON | st.just(ABSENT))
def test_any_json_on_both_sides_is_graded(grader: Grader, expected: Any, got: Any) -> None:
    leaves = list(grader.grade(expected, got))
    assert leaves
    assert all(0 <= leaf.score <= 1 for leaf in leaves)
    assert grader.agree(expected, expected)


WORDS = st.sampled_from(["a", "b", "ab", "abc", "", None])
LINES = st.fixed_dictionaries(
    {},
    optional={
        "sku": WORDS,
        "amount": st.none() | st.integers(0, 3),
        "tags": st.none() | st.lists(WORDS, max_size=3),
        "note": st.none() | st.fixed_dictionaries({"by": WORDS, "seen": st.none() | st.booleans()}),
    },
)
ANSWERS = st.fixed_dictionaries(
    {}, optional={"id": WORDS, "lines": st.lists(LINES, max_size=4), "kinds": st.lists(WORDS, max_size=4)}
)


@given(ANSWERS, ANSWERS)
def test_every_leaf_of_both_sides_is_counted_once(expected: Any, got: Any) -> None:
    """Match + wrong + missed are the expected leaves, match + wrong + invented the given ones, with their values."""
    leaves = list(NESTED.grade(expected, got))
    for given_by, beside, value in ((expected, "missed", "expected"), (got, "invented", "got")):
        counted = [leaf for leaf in leaves if leaf.verdict.value in ("match", "wrong", beside)]
        found = Counter((leaf.path, getattr(leaf, f"{value}_index"), repr(getattr(leaf, value))) for leaf in counted)
        parts = NESTED.parts(given_by) if NESTED.gives(given_by) else ()
        assert found == Counter((path.removeprefix("."), place, repr(part)) for path, place, part in parts)


@given(ANSWERS, st.data())
def test_the_order_of_items_does_not_matter(answer: Any, data: st.DataObject) -> None:
    shuffled = dict(answer, lines=data.draw(st.permutations(answer.get("lines", []))))
    assert NESTED.agree(answer, shuffled)


@given(ANSWERS, ANSWERS)
def test_grading_is_a_function_of_both_answers(expected: Any, got: Any) -> None:
    assert list(NESTED.grade(expected, got)) == list(NESTED.grade(expected, got))


@given(ANSWERS, ANSWERS)
def test_what_one_side_misses_the_other_invents(expected: Any, got: Any) -> None:
    there, back = verdicts(NESTED, expected, got), verdicts(NESTED, got, expected)
    assert there.get("missed", 0) - there.get("invented", 0) == back.get("invented", 0) - back.get("missed", 0)


# Items.


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_list_of_one_is_graded_like_a_longer_one(size: int) -> None:
    expected = [{"sku": f"code {n}", "amount": n} for n in range(size)]
    got = [{"sku": f"code {n}", "amount": n + 10} for n in range(size)]
    assert verdicts(Items(fields={"sku": Text(), "amount": Number()}), expected, got) == {"match": size, "wrong": size}
    assert verdicts(Items(), ["x" * 9] * size, ["y" * 9] * size) == {"missed": size, "invented": size}


def test_fields_that_both_leave_empty_do_not_make_items_alike() -> None:
    """Five of six fields are absent on both sides, and the sixth differs: these are two different items."""
    fields = {name: Text() for name in "abcdef"}
    empty = dict.fromkeys("abcde")
    assert verdicts(Items(fields=fields), [{**empty, "f": "north"}], [{"f": "tulip"}]) == {"missed": 1, "invented": 1}


def test_an_answer_that_found_nothing_matches_nothing() -> None:
    fields = {name: Text() for name in "abcdef"}
    assert verdicts(Items(fields=fields), [{"a": "north"}], [dict.fromkeys("abcdef")]) == {"missed": 1}


def test_a_wrong_leaf_inside_of_an_aligned_item_is_told_with_both_its_places() -> None:
    fields = {"sku": Text(), "amount": Number()}
    expected = [{"sku": "north", "amount": 1}, {"sku": "south", "amount": 2}]
    got = [{"sku": "south", "amount": 3}, {"sku": "north", "amount": 1}, {"sku": "extra"}]
    assert told(Items(fields=fields).grade(expected, got)) == [
        ("[].sku", "match", (0,), (1,)),
        ("[].amount", "match", (0,), (1,)),
        ("[].sku", "match", (1,), (0,)),
        ("[].amount", "wrong", (1,), (0,)),
        ("[].sku", "invented", (), (2,)),
    ]


def test_items_inside_of_items_tell_the_places_of_all_lists() -> None:
    grader = Object({"pages": Items(fields={"name": Text(), "lines": Items()})})
    expected = {"pages": [{"name": "one", "lines": ["north", "south"]}]}
    got = {"pages": [{"name": "zero"}, {"name": "one", "lines": ["south"]}]}
    assert told(grader.grade(expected, got)) == [
        ("pages[].name", "match", (0,), (1,)),
        ("pages[].lines[]", "missed", (0, 0), (1,)),
        ("pages[].lines[]", "match", (0, 1), (1, 0)),
        ("pages[].name", "invented", (), (0,)),
    ]


def test_items_meet_by_their_key_however_little_they_are_alike() -> None:
    fields = {"sku": Text(), "amount": Number(), "name": Text()}
    one, other = {"sku": "A-1", "amount": 1, "name": "north"}, {"sku": "a 1", "amount": 2, "name": "tulip"}
    assert verdicts(Items(fields=fields), [one], [other]) == {"missed": 3, "invented": 3}
    assert verdicts(Items(fields=fields, key="sku"), [one], [other]) == {"match": 1, "wrong": 2}
    assert verdicts(Items(fields=fields, key=("sku", "amount")), [one], [other]) == {"missed": 3, "invented": 3}


def test_of_items_with_the_same_key_the_more_alike_meet() -> None:
    grader = Items(fields={"sku": Text(), "amount": Number()}, key="sku")
    expected = [{"sku": "a", "amount": 1}, {"sku": "a", "amount": 2}]
    assert verdicts(grader, expected, expected[::-1]) == {"match": 4}


def test_items_without_a_key_meet_only_each_other_by_their_likeness() -> None:
    grader = Items(fields={"sku": Text(), "amount": Number()}, key="sku")
    assert verdicts(grader, [{"amount": 1}], [{"amount": 1}]) == {"empty": 1, "match": 1}
    assert verdicts(grader, [{"amount": 1}], [{"amount": 1, "sku": "a"}]) == {"missed": 1, "invented": 2}


def test_a_missed_item_misses_every_leaf_that_it_gives() -> None:
    note = {"by": "anna", "seen": None}
    assert told(NESTED.grade({"lines": [{"sku": "a", "tags": ["x", "y"], "note": note}]}, {})) == [
        ("lines[].sku", "missed", (0,), ()),
        ("lines[].tags[]", "missed", (0, 0), ()),
        ("lines[].tags[]", "missed", (0, 1), ()),
        ("lines[].note.by", "missed", (0,), ()),
    ]


def test_items_that_give_nothing_do_not_count_and_keep_their_place() -> None:
    assert told(Items().grade(["", None, "a"], ["a", " "])) == [("[]", "match", (2,), (0,))]
    assert told(Items().grade([""], [])) == [("", "empty", (), ())]


def test_an_empty_list_is_a_value_where_the_field_says_so() -> None:
    strict = Items(nothing="null")
    sides: list[tuple[Any, Any]] = [([], []), ([], None), (None, [])]
    assert [verdicts(strict, *each) for each in sides] == [{"match": 1}, {"missed": 1}, {"invented": 1}]
    assert told(strict.grade([], ["a"])) == [("[]", "invented", (), (0,))]


def test_a_value_of_another_kind_is_wrong_in_every_leaf_that_was_expected() -> None:
    assert verdicts(Items(), ["a", "b"], "a") == {"wrong": 2}
    assert verdicts(NESTED, {"id": "a", "lines": [{"sku": "b"}]}, ["a"]) == {"wrong": 2}
    assert verdicts(Items(), "a", ["a"]) == {"wrong": 1}
    assert verdicts(Items(), None, "a") == {"invented": 1}


def test_a_function_sees_its_row_when_items_are_compared() -> None:
    same_in_row = Items(Function(lambda expected, got, row: row["prefix"] + expected == got))
    leaves = same_in_row.grade(["a", "b"], ["xb", "xa"], Place(row={"prefix": "x"}))
    assert told(leaves) == [("[]", "match", (0,), (1,)), ("[]", "match", (1,), (0,))]


# Sets, order, objects.


def test_a_set_has_neither_order_nor_repeats() -> None:
    assert verdicts(Set(), ["a", "b", "A"], ["B", "a", "b "]) == {"match": 2}
    assert verdicts(Set(), ["north"], ["norths"]) == {"missed": 1, "invented": 1}


def test_one_item_put_in_shifts_no_other() -> None:
    assert told(Ordered().grade(list("abc"), list("xabc"))) == [
        ("[]", "match", (0,), (1,)),
        ("[]", "match", (1,), (2,)),
        ("[]", "match", (2,), (3,)),
        ("[]", "invented", (), (0,)),
    ]


def test_an_item_replaced_in_its_order_is_wrong() -> None:
    assert verdicts(Ordered(), list("abc"), list("axc")) == {"match": 2, "wrong": 1}
    assert verdicts(Ordered(), list("ab"), list("ba")) == {"match": 1, "missed": 1, "invented": 1}


def test_names_that_a_path_could_not_be_read_with_stand_in_brackets() -> None:
    grader = Object({"a.b": Text(), "c[]": Object({"d": Text()}), "": Text()})
    found = told(grader.grade({"a.b": "x", "c[]": {"d": "y"}, "": "z"}, {}))
    assert [path for path, *_ in found] == ['["a.b"]', '["c[]"].d', '[""]']


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Items(WRONG["class"]), r"Items\(of=...\): Text is a class, write Text\(\)"),
        (lambda: Items(WRONG["text"]), "is not a grader; use one of pipeline.evaluation"),
        (lambda: Items(fields={"a": WRONG["number"]}), "'a': 3 is not a grader"),
        (lambda: Items(Text(), fields={"a": Text()}), "`of` and `fields` exclude each other"),
        (lambda: Items(Text(), key="a"), "a `key` is a field of objects"),
        (lambda: Items(at_least=1.5), "`at_least` is a similarity from 0 to 1"),
        (lambda: Items(key=""), "`key` names the field"),
        (lambda: Items(key=[]), "`key` names the field"),
        (lambda: Object({"a": WRONG["class"]}), r"'a': Text is a class, write Text\(\)"),
        (lambda: Judge(" "), "the rubric says what is right"),
        (lambda: Judge("same?", votes=2), "`votes` is an odd number, not 2"),
    ],
)
def test_a_mistake_is_found_when_the_grader_is_made(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
