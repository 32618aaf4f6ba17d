"""The two sides that an evaluation compares: each row's expected answer, and its actual answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from pipeline.data import Row
from pipeline.evaluation.definition import Eval
from pipeline.evaluation.graders.rows import Gold, RowAnswer
from pipeline.faults import NothingToDo, Unparsable, UsageError
from pipeline.job.job import Job
from pipeline.schema.shape import bare_json
from pipeline.source import Source, Survey
from pipeline.storage.records import records
from pipeline.text import short_hash

_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def read_gold(evaluation: Eval, found: Survey) -> tuple[Gold, ...]:
    """The gold data of a surveyed input, in order.

    Raises `NothingToDo` when there is no row, and `UsageError` for a row that cannot be read, has no expected answer,
    names a field that the job's schema lacks, or has the key of another row.
    """
    if not found.rows:
        raise NothingToDo("the gold data holds no row")
    columns = list(found.columns)
    evaluation.columns_needed(columns)
    evaluation.job.columns_needed(columns)
    gold: dict[str, Gold] = {}
    for row in _rows(found, columns):
        one = _gold(evaluation, row)
        if one.row in gold:
            raise UsageError(f"two rows of the gold data have the {evaluation.job.key} {one.row!r}: it must be unique")
        gold[one.row] = one
    return tuple(gold.values())


def read_answers(job: Job, output: Path, repeat: int = 0) -> Iterator[RowAnswer]:
    """The answers of a finished run, in row order."""
    columns = ["status", "response.text", "response.cost_usd", "response.latency_s", "error.type"]
    return (_answer(job, record, repeat) for _, record in records(output, columns))


def data_hash(gold: Gold) -> str:
    """A hash of the whole gold row, whichever columns a job reads. A null equals an absent value."""
    given = {name: value for name, value in gold.columns.items() if value is not None}
    content = json.dumps([given, gold.expected], sort_keys=True, default=_hashed, ensure_ascii=False)
    return short_hash(content)


def _rows(found: Survey, needed: list[str]) -> Iterator[Row]:
    source = Source(found, needed=needed, kept=[])
    try:
        for chunk in range(len(found.chunks)):
            for batch in source.chunk(chunk):
                yield from batch.rows
    finally:
        source.close()


def _gold(evaluation: Eval, row: Row) -> Gold:
    problems = [row.problem] if row.problem else list(getattr(row.values, "problems", {}).values())
    if problems:
        raise UsageError(f"row {row.ordinal} of the gold data cannot be read: {problems[0]}")
    key, expected = row.values[str(evaluation.job.key)], _json_value(evaluation, row)
    if key is None:
        raise UsageError(f"row {row.ordinal} of the gold data has no {evaluation.job.key}")
    if expected is None:
        raise UsageError(f"row {key} of the gold data expects nothing ({evaluation.expected!r} is null)")
    _require_known(evaluation, key, expected)
    marks = {name: _label(row.values[name]) for name in evaluation.marks if row.values[name] is not None}
    cluster = row.values[evaluation.cluster] if evaluation.cluster else None
    others = {name: value for name, value in row.values.items() if name != evaluation.expected}
    return Gold(str(key), expected, others, marks, None if cluster is None else str(cluster))


def _label(value: object) -> str:
    """A slice's value as a gate's `where` writes it: text unchanged, `true`, `3`, `2026-11-22`."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _json_value(evaluation: Eval, row: Row) -> Any:
    """The expected answer as JSON; in Parquet it is a struct, or JSON text."""
    value = row.values[evaluation.expected]
    if isinstance(value, str) and evaluation.job.schema is not None:
        try:
            return json.loads(value)
        except ValueError:
            raise UsageError(
                f"row {row.ordinal} of the gold data: {evaluation.expected!r} is text, but not JSON"
            ) from None
    return _ANY.dump_python(value, mode="json")


def _require_known(evaluation: Eval, key: object, expected: Any) -> None:
    if evaluation.job.shape is None:
        return
    if not isinstance(expected, dict):
        raise UsageError(
            f"row {key} of the gold data: {evaluation.expected!r} must be an object, shaped like the schema"
        )
    unknown = sorted(set(expected) - set(evaluation.graders.fields))
    if unknown:
        known = ", ".join(evaluation.graders.fields)
        raise UsageError(f"row {key} of the gold data expects {unknown[0]!r}, which the schema lacks (it has: {known})")


def _hashed(value: object) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _answer(job: Job, record: Mapping[str, Any], repeat: int) -> RowAnswer:
    response = record["response"] or {}
    got, fault = None, (record["error"] or {}).get("type")
    try:
        got = _value(job, response["text"]) if fault is None else None
    except Unparsable:  # the job's schema has changed since
        fault = "Unparsable"
    return RowAnswer(got, fault, repeat, response.get("cost_usd"), response.get("latency_s"))


def _value(job: Job, text: str | None) -> Any:
    """The answer as JSON, after the schema's coercions and validators."""
    if text is None or job.schema is None:
        return text
    if job.shape is None:
        return json.loads(bare_json(text))
    value = job.shape.parse(text)
    return (
        value.model_dump(mode="json", by_alias=True)
        if isinstance(value, BaseModel)
        else _ANY.dump_python(value, mode="json")
    )
