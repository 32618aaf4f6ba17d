"""Gold data: read as the evaluation needs it, and refused before any call where it is not sound."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from pipeline import Eval, Job, NeverBreak
from pipeline.evaluation.gold import data_hash, read_gold
from pipeline.evaluation.graders.rows import Gold
from pipeline.faults import NothingToDo, UsageError
from pipeline.source import survey


class Bill(BaseModel):
    issued: dt.date
    total: Decimal
    lines: list[str] = []


def evaluation_of(**changes: Any) -> Eval:
    job = {"name": "a", "model": "m", "input": "x", "user": "{{ text }}", "schema": Bill, "key": "id"}
    own = {name: changes.pop(name) for name in list(changes) if name in (*job, "n")}
    return Eval(job=Job(**{**job, **own}), **changes)


def read(path: Path, **changes: Any) -> tuple[Gold, ...]:
    return read_gold(evaluation_of(**changes), survey([path]))


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "gold.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(key: Any = "a", **more: Any) -> dict[str, Any]:
    expected = {"issued": "2026-11-22", "total": "12.50", "lines": ["x"]}
    return {"id": key, "text": "t", "tier": "golden", "page": 1, "expected": expected} | more


def test_no_row_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(NothingToDo):
        read(jsonl(tmp_path))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(), row()], "two rows of the gold data have the id 'a'"),
        ([row(1), row("1")], "two rows of the gold data have the id '1'"),
        ([row(None)], "row 0 of the gold data has no id"),
        ([row(expected=None)], "row a of the gold data expects nothing"),
        ([row(), row("b") | {"expected": None}], "row b of the gold data expects nothing"),
        ([row(expected={"totl": "1"})], "expects 'totl', which the schema lacks"),
        ([row(expected=["12.50"])], "must be an object"),
        ([row(expected="{12.50")], "is text, but not JSON"),
        ([row(), "{not JSON"], "row 1 of the gold data cannot be read"),
        ([{"id": "a", "text": "t"}], "`expected` names the column 'expected', which the gold data lacks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_sound_is_refused(tmp_path: Path, rows: list[Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read(jsonl(tmp_path, *rows))


def test_columns_that_slices_gates_and_clusters_name_must_be_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path, row())
    for change in ({"slices": ["teir"]}, {"cluster": "document"}, {"gates": [NeverBreak(where={"teir": "golden"})]}):
        with pytest.raises(UsageError, match="which the gold data lacks"):
            read(path, **change)


def test_marks_are_text_as_gates_write_it_and_a_null_is_none(tmp_path: Path) -> None:
    path = jsonl(tmp_path, row(vip=True, tier=None), row("b", vip=False, tier="x"))
    one, other = read(path, slices=["vip", "page", "tier"], cluster="page")
    assert one.slices == {"vip": "true", "page": "1"}
    assert other.slices == {"vip": "false", "page": "1", "tier": "x"}
    assert one.cluster == "1"


EXPECTED = {"issued": "2026-11-22", "total": "12.50", "lines": ["x"]}


@pytest.mark.parametrize(
    "expected",
    [
        [{"issued": dt.date(2026, 11, 22), "total": Decimal("12.50"), "lines": ["x"]}],
        [json.dumps(EXPECTED)],
    ],
    ids=["struct", "text"],
)
def test_parquet_has_what_is_expected_as_a_struct_or_as_text_of_json(tmp_path: Path, expected: list[Any]) -> None:
    path = tmp_path / "gold.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["t"], "expected": expected}), path)
    (gold,) = read(path)
    assert gold.expected == EXPECTED
    assert gold.columns == {"id": "a", "text": "t"}


def test_jsonl_has_it_as_an_object_or_as_text_of_json(tmp_path: Path) -> None:
    (one,) = read(jsonl(tmp_path, row()))
    (other,) = read(jsonl(tmp_path, row(expected=json.dumps(EXPECTED))))
    assert one.expected == other.expected == EXPECTED


def test_a_job_without_a_schema_expects_text_as_it_is(tmp_path: Path) -> None:
    (gold,) = read(jsonl(tmp_path, row(expected='{"as": "it is"}')), schema=None)
    assert gold.expected == '{"as": "it is"}'


def test_the_hash_of_a_row_is_of_all_its_columns_whichever_the_job_reads(tmp_path: Path) -> None:
    path = jsonl(tmp_path, row())
    hashes = {data_hash(gold) for user in ("{{ text }}", "{{ text }} of {{ tier }}") for gold in read(path, user=user)}
    assert len(hashes) == 1
    changed = [row(text="u"), row(tier="x"), row(expected={**EXPECTED, "lines": []})]
    hashes |= {data_hash(gold) for each in changed for gold in read(jsonl(tmp_path, each))}
    assert len(hashes) == 4


def test_a_column_that_only_other_rows_have_changes_no_hash(tmp_path: Path) -> None:
    before = data_hash(read(jsonl(tmp_path, row(), row("b")))[0])
    assert data_hash(read(jsonl(tmp_path, row(), row("b", note="new")))[0]) == before
